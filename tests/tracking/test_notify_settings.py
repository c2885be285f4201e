"""The operator's settings of notifications: from the environment and a file, checked, and never shown."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalablevit.config.errors import UserError
from scalablevit.tracking.notify_settings import FORMATS, VARIABLE, NotifySettings, load_settings

SECRET = base64.b64encode(b"canary-" * 5).decode()
HOOK = "https://hooks.example/services/canary"


def of(**given: str) -> dict[str, str]:
    return {VARIABLE + name.upper(): value for name, value in given.items()}


def test_nothing_is_set() -> None:
    assert load_settings({}) == load_settings(of(webhook="", secret="", command="", file="")) == NotifySettings()
    assert str(load_settings({})) == "nobody: SCALABLEVIT_NOTIFY_WEBHOOK and SCALABLEVIT_NOTIFY_COMMAND are not set"


@pytest.mark.parametrize("secret", [SECRET, f"whsec_{SECRET}"])
def test_all_of_it_from_the_environment(secret: str) -> None:
    found = load_settings(of(webhook=HOOK, secret=secret, format="teams", allow_http="1", command="/bin/x 'a b' $C;d"))
    assert found == NotifySettings(HOOK, b"canary-" * 5, "teams", True, ("/bin/x", "a b", "$C;d"))
    assert str(found) == "the webhook (teams, signed) and the command"
    assert "canary" not in f"{found!r}{found}" and "/bin/x" not in f"{found!r}{found}"


def test_a_file_outside_the_upload_which_the_environment_overrides(tmp_path: Path) -> None:
    file = tmp_path / "notify.json"
    file.write_text(json.dumps({"webhook": HOOK, "secret": SECRET, "format": "slack"}))
    assert load_settings(of(file=str(file))) == NotifySettings(HOOK, b"canary-" * 5, "slack")
    assert load_settings(of(file=str(file), format="json")).format == "json"


@pytest.mark.parametrize(
    ("given", "key", "what"),
    [
        ({"webhook": "ftp://hooks.example/canary"}, "WEBHOOK", "no https:// address"),
        ({"webhook": "https:///canary"}, "WEBHOOK", "no https:// address"),
        ({"webhook": "https://canary@hooks.example/"}, "WEBHOOK", "no https:// address"),
        ({"webhook": "https://hooks.example:canary/"}, "WEBHOOK", "no https:// address"),
        ({"webhook": "https://hooks.example/ canary"}, "WEBHOOK", "no https:// address"),
        ({"webhook": "https://hooks.example/canary\r\nX: y"}, "WEBHOOK", "no https:// address"),
        ({"webhook": "http://hooks.example/canary"}, "WEBHOOK", "no https:// address"),
        ({"webhook": HOOK}, "SECRET", "not set"),
        ({"webhook": HOOK, "secret": "canary"}, "SECRET", "not base64 of 16 bytes or more"),
        ({"webhook": HOOK, "secret": "can ary" + SECRET}, "SECRET", "not base64"),
        ({"webhook": HOOK, "format": "xml"}, "FORMAT", "'xml' is no format"),
        ({"allow_http": "yes"}, "ALLOW_HTTP", "'yes' is neither 0 nor 1"),
        ({"command": "notify canary"}, "COMMAND", "absolute path"),
        ({"command": "/bin/x 'canary"}, "COMMAND", "No closing quotation"),
        ({"file": "notify.json"}, "FILE", "relative"),
        ({"file": "/data/ray/session_latest/notify.json"}, "FILE", "Ray session folder"),
        ({"file": "/nowhere/notify.json"}, "FILE", "FileNotFoundError"),
    ],
)
def test_a_mistake_is_named_and_no_secret_shown(given: dict[str, str], key: str, what: str) -> None:
    with pytest.raises(UserError) as raised:
        load_settings(of(**given))
    assert raised.value.where == VARIABLE + key and what in raised.value.what and raised.value.fix
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    "content", ['{"webhook": "canary"', '["canary"]', '{"hook": "canary"}', '{"allow_http": true}']
)
def test_a_file_that_is_none_is_named_and_not_shown(content: str, tmp_path: Path) -> None:
    file = tmp_path / "notify.json"
    file.write_text(content)
    with pytest.raises(UserError) as raised:
        load_settings(of(file=str(file)))
    assert str(file) in str(raised.value) and "canary" not in str(raised.value)


SECRETS = st.text("abcXYZ019+/=_ %@:'\"\\\n\x00é", min_size=1, max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SECRETS, SECRETS, SECRETS, st.sampled_from([*FORMATS, "xml"]))
def test_any_values_are_settings_or_a_mistake_that_shows_none_of_them(
    webhook: str, secret: str, command: str, chosen: str
) -> None:
    marked = {"webhook": f"https://h/canary{webhook}", "secret": f"canary{secret}", "command": f"/canary{command}"}
    try:
        found = load_settings(of(**marked, format=chosen))
    except UserError as error:
        assert "canary" not in str(error)
        return
    assert len(found.key) >= 16 and found.webhook == marked["webhook"] and found.command[0].startswith("/canary")
    assert "canary" not in f"{found!r}{found}"
