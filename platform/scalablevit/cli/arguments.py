"""Arguments that several commands take alike."""

import argparse

from scalablevit.config.shipped import recipe_file


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe`: a file, or the name of a shipped recipe."""
    parser.add_argument(
        "--recipe", type=recipe_file, metavar="FILE",
        help="recipe, or the name of a shipped one (default: the built-in demo)",
    )  # fmt: skip
