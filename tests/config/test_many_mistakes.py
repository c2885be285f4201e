"""Files with very many keys and mistakes are refused at once, and the message stays short."""

import time
from pathlib import Path

import pytest

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_recipe
from scalablevit.config.strict_yaml import MAX_VALUES

LONGEST_S = 2.0

STAGE = """
data: {source: image_folder, root: set, train: {images: t}, val: {images: v}}
model: {name: resnet18}
task: {kind: classification}
optimizer: {lr: 0.001}
training: {epochs: 4, global_batch_size: 8}
"""


def refused(path: Path) -> tuple[UserError, float]:
    begin = time.process_time()
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    return caught.value, time.process_time() - begin


@pytest.mark.parametrize("section", ["", "data", "optimizer.schedule", "model.options"])
@pytest.mark.parametrize("count", [200_000, MAX_VALUES // 2 - 100])
def test_very_many_unknown_keys_are_refused_quickly(section: str, count: int, tmp_path: Path) -> None:
    sections = section.split(".") if section else []
    margin = "  " * len(sections)
    opened = "".join("  " * depth + f"{name}:\n" for depth, name in enumerate(sections))
    (tmp_path / "r.yaml").write_text(f"name: r\n{opened}" + "".join(f"{margin}k{n}: {{}}\n" for n in range(count)))
    error, seconds = refused(tmp_path / "r.yaml")
    assert seconds < LONGEST_S
    assert str(tmp_path / "r.yaml") in str(error)
    assert len(str(error).splitlines()) <= 2 * 20 + 1


def test_the_first_mistakes_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    text = "name: r" + STAGE + "".join(f"key{n}: 1\n" for n in range(500))
    (tmp_path / "r.yaml").write_text(text)
    error, _ = refused(tmp_path / "r.yaml")
    assert isinstance(error, UserErrors) and len(error.errors) == 500
    assert str(error).splitlines()[-1] == "... and 480 more"
    assert "key19" in str(error) and "key20" not in str(error)


def test_many_stages_over_many_shared_keys_are_refused_quickly(tmp_path: Path) -> None:
    shared = "data:\n" + "".join(f"  k{n}: 1\n" for n in range(2000))
    (tmp_path / "r.yaml").write_text(f"name: r\n{shared}stages:\n" + "".join(f"  s{n}: {{}}\n" for n in range(1000)))
    error, seconds = refused(tmp_path / "r.yaml")
    assert seconds < LONGEST_S and "1000 stages" in str(error)
