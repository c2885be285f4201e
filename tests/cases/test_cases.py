"""Files, folders and commands that people really have, each with its right answer.

A case is what a public report of this field describes, made small; a sub-case stands in brackets. The right answer is a
refusal with the reason, the counts and a way out that works; a warning with a number; or that the data are read. The
dry run and `check_data` give the same one.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cases.answers import Answer, check, dry_run, search
from cases.building import build

REFUSED, TAKEN, EITHER = "refused", "taken", "either"


@dataclass(frozen=True, slots=True)
class Right:
    """The right answer to the data of a case."""

    outcome: str
    said: tuple[str, ...] = ()
    """Patterns that the dry run and `check_data` both print."""
    unsaid: tuple[str, ...] = ()
    """Patterns that neither prints."""


def read(train: int, val: int, *said: str, unsaid: tuple[str, ...] = ()) -> Right:
    """All samples are read; more patterns are notes and warnings."""
    counts = rf"({train} training and {val} validation samples|/train: {train} samples(.|\n)*/val: {val} samples)"
    return Right(TAKEN, (counts, *said), unsaid)


def refused(*said: str, unsaid: tuple[str, ...] = ()) -> Right:
    """The data are refused before anything starts."""
    return Right(REFUSED, said, unsaid)


NO_OBJECT = r"(no|without an?) (object|annotation|instance)"
REMOVE = r"(?i)\bremove (them|these|the files)|replace or remove|remove or replace"
"""Advice that does not fit where names or kinds of files are wrong."""

DATA_CASES: dict[str, Right] = {
    "mask-values-0-255": refused(r"object.* no pixel", r"255", r"14[,.]?360", r"fix: .*(masks|ignore_index|class)"),
    "zero-label-reduced": refused(r"object \(mask value 2\).* no pixel", r"83[,.]?944", r"fix: .*reduce_zero_label"),
    "only-crowds[trainonly]": refused(r"24 of 24 .*crowds", r"fix: .*iscrowd"),
    "boxes-as-fractions[norm]": refused(r"\b24\b.*box.*fractions|fractions.*\b24\b", r"fix: .*width"),
    "boxes-as-fractions[xyxy]": read(8, 4, r"warning.*\b13 of 24\b.*reach out", r"warning.*x1, y1, x2, y2"),
    "no-annotations[notrain]": refused(rf"{NO_OBJECT}.* training", r"data\.train\.annotations"),
    "no-annotations[noval]": refused(rf"{NO_OBJECT}.* validation", r"data\.val\.annotations"),
    "class-names-unicode": read(8, 4, r"3 classes|背景"),
    "leaked-validation[flat]": refused(r"20 of 20 validation images", r"same folder", r"max_shared_fraction"),
    "leaked-validation[leak]": refused(r"20 of 20 validation images", r"cat/000\.jpg", r"max_shared_fraction"),
    "suffixes[ext]": read(26, 16, r"\.heic.*cat/i\.heic", r"cat/noext", unsaid=(r"y\.jfif", r"a\.avif", r"z\.jpe")),
    "suffixes[avif]": read(12, 7),
    "suffixes[avif_named_jpg]": refused(
        r"2 (of 19 )?samples cannot be read", r"dog/page\.jpg", r"dog/zero\.jpg", unsaid=(r"scraped\.jpg",)
    ),
    "pixel-formats": read(
        42, 4, r"warning.*\b\d+ of \d+ .*transparen", r"warning.*\b\d+ of \d+ .*\b16\b", r"g12in16|i32|rgb16",
        r"trunc\.jpg|1 (samples cannot be read|unreadable)",
    ),
    "file-names[backslash]": read(8, 4, r"\b8 file names were read with / for \\", r"\b4 file names", unsaid=(REMOVE,)),
    "file-names[prefix]": read(8, 4, r"\b8 file names were read without the leading images/", unsaid=(REMOVE,)),
    "file-names[encoded]": read(8, 4, r"\b8 file names were read with .*decoded", unsaid=(REMOVE,)),
    "polygons-missing[one]": read(8, 4, r"\b1 objects without a mask .*left out"),
    "polygons-missing[all]": refused(
        r"24 of 24 annotations have no mask", r"fix: .*task\.head=retinanet", r"data\.instance_masks=false"
    ),
    "polygons-missing[one_retina]": read(8, 4),
    "polygons-missing[all_retina]": read(8, 4),
    "mask-colour-types[palette]": read(8, 4),
    "mask-colour-types[greyrgb]": read(8, 4),
    "mask-colour-types[onebit]": read(8, 4),
    "mask-colour-types[sixteen]": read(8, 4),
    "mask-colour-types[rgb]": refused(r"8 .*masks|8 masks", r"(?i)RGB|colou?r", unsaid=(REMOVE,)),
    "mask-names[jpgmask]": refused(r"8 images .*no mask", r"8 [^;]*(jpg|JPEG)", unsaid=(REMOVE,)),
    "mask-names[suffix]": refused(r"8 images .*no mask", r"0000_mask\.png", unsaid=(REMOVE,)),
    "mask-names[tif]": Right(EITHER, (r"8 training and 4 validation|/train: 8 samples|8 [^;]*\.tif",), (REMOVE,)),
    "mask-names[upper]": Right(EITHER, (r"8 training and 4 validation|/train: 8 samples|8 [^;]*\.PNG",), (REMOVE,)),
    "mask-names[single]": refused(r"(?i)(only|at most|a single|one) class", r"object", unsaid=(REMOVE,)),
    "ids-and-nulls[strid]": read(8, 4),
    "ids-and-nulls[nulls]": read(8, 4),
    "ids-and-nulls[minimal]": read(8, 4),
    "categories-differ[swap]": refused(r"categories of the splits differ", r"only train has 1 \(red\), 2 \(green\)"),
    "categories-differ[order]": read(8, 4),
    "coco-results": read(32, 10),
    "map-of-values[sparse]": read(8, 4, r"ignored.*6[,.]?144"),
    "imbalance": read(100, 40, r"warning.*scratch 5\b", r"warning.*\b95\b"),
}  # fmt: skip
Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Builds a case once, and gives its recipe and root."""
    built: dict[str, tuple[Path, Path]] = {}

    def find(name: str) -> tuple[Path, Path]:
        if name not in built:
            root = tmp_path_factory.mktemp("case")
            built[name] = build(name, root), root
        return built[name]

    return find


OVERRIDES = {"pixel-formats": ("data.max_bad_fraction=0.05",)}
"""As a user would write them who has been told of the one damaged file."""


@pytest.mark.parametrize("run", [dry_run, check], ids=["dry_run", "check_data"])
@pytest.mark.parametrize("name", DATA_CASES)
def test_data(name: str, run: Run, recipe_of: Callable[[str], tuple[Path, Path]]) -> None:
    right, (recipe, root) = DATA_CASES[name], recipe_of(name)
    answer = run(recipe, root, *OVERRIDES.get(name, ()))
    missing = [pattern for pattern in right.said if not re.search(pattern, answer.text)]
    wrong = [pattern for pattern in right.unsaid if re.search(pattern, answer.text)]
    assert not missing and not wrong, f"missing {missing}, wrong {wrong} in:\n{answer.text}"
    assert "Traceback" not in answer.text
    if right.outcome == TAKEN and name not in OVERRIDES:
        assert answer.code == 0, answer.text
    if right.outcome == REFUSED:
        assert answer.code != 0, answer.text
        assert "fix: " in answer.text or "Nothing bad" not in answer.text
