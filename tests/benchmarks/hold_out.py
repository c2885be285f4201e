"""Two disjoint parts of an image folder, for a search that must not see the data it is judged by.

    python tests/benchmarks/hold_out.py <folder of class folders> <new folder> --train 200 --val 150

The first images of each class by name become `<new>/train`, the next ones `<new>/val`; files are linked, not copied.
"""

import argparse
import os
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--train", type=int, required=True, help="images of each class")
    parser.add_argument("--val", type=int, required=True, help="images of each class")
    options = parser.parse_args()
    for folder in sorted(path for path in options.source.iterdir() if path.is_dir()):
        files = sorted(folder.iterdir())
        if len(files) < options.train + options.val:
            parser.error(f"{folder} has {len(files)} files, fewer than {options.train} + {options.val}")
        parts = {"train": files[: options.train], "val": files[options.train : options.train + options.val]}
        for part, chosen in parts.items():
            (options.target / part / folder.name).mkdir(parents=True)
            for file in chosen:
                os.link(file, options.target / part / folder.name / file.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
