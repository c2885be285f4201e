"""Roots with names that mean something else elsewhere are refused at once, with what is wrong."""

from pathlib import Path

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.root import platform_root, tracking_uri


@pytest.mark.parametrize(("name", "shown"), [("what?", "'?'"), ("a%41b", "'%41'"), ("a%2fb", "'%2f'")])
def test_a_root_that_an_sqlite_address_cannot_hold_is_refused(name: str, shown: str) -> None:
    with pytest.raises(UserError, match="means something else") as caught:
        tracking_uri(None, Path("/data") / name)
    assert shown in str(caught.value) and caught.value.where == "--root" and "tracking.uri" in caught.value.fix
    assert tracking_uri("http://host", Path("/data") / name) == "http://host"


@pytest.mark.parametrize("name", ["exp #2", "100%", "it's", 'a "b"', "données 数据", "a&b;c"])
def test_other_names_are_taken_as_they_are(name: str) -> None:
    assert tracking_uri(None, Path("/data") / name) == f"sqlite:////data/{name}/mlflow.db"


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb", "a\udcffb"])
def test_a_root_that_cannot_be_printed_is_refused_and_not_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be printed") as caught:
        platform_root(str(tmp_path / name))
    assert str(caught.value).isprintable() or "\n  fix:" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_or_cannot_be_made_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.touch()
    for make in (True, False):
        with pytest.raises(UserError, match=r"my\.yaml is no folder"):
            platform_root(str(file), make=make)
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        platform_root(str(file / "root"))
