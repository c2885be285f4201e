"""Names of per-class metrics."""

import re
import unicodedata
from collections.abc import Sequence

LONGEST = 200
"""Most characters of a class in a metric's name; MLflow takes 250 for the whole name."""


def class_metric_names(metric: str, classes: Sequence[str]) -> list[str]:
    """Return `<metric>/<class>` for each class, all different.

    Letters and digits of every script, `_ - . :` and spaces stay; other characters, which MLflow refuses, and `/`,
    which separates metric and class, become `_`. Names that are equal after that are numbered: `a_b`, `a_b_2`.
    """
    plain = [_plain(name) for name in classes]
    # a class whose name stays as it is keeps it, whatever others become
    taken = {name for name, own in zip(classes, plain, strict=True) if name == own}
    names = []
    for name, own in zip(classes, plain, strict=True):
        numbered, count = own, 1
        while name != own and numbered in taken:
            count += 1
            numbered = f"{own}_{count}"
        taken.add(numbered)
        names.append(f"{metric}/{numbered}")
    return names


def _plain(class_name: str) -> str:
    kept = re.sub(r"[^\w.\- :]", "_", unicodedata.normalize("NFC", class_name))[:LONGEST]
    return kept.replace(".", "_") if kept.strip(".") == "" else kept  # `.` and `..` are steps of a path
