"""Rules, configuration and dashboard for Prometheus and Grafana name what is exported, and say what they mean to."""

import importlib.util
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.pages import REPOSITORY
from harness.prometheus import promtool
from prometheus_client import generate_latest

from scalablevit.training.gauges import GAUGES, VALIDATION

METRICS = REPOSITORY / "infra" / "metrics"
RULES = yaml.safe_load((METRICS / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
DASHBOARD = json.loads((METRICS / "dashboard.json").read_text(encoding="utf-8"))
VARIABLES = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
PAGE = (REPOSITORY / "docs" / "clusters.md").read_text(encoding="utf-8")


def queries() -> list[str]:
    """All that the dashboard asks Prometheus, with every value for its variables."""
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [re.sub(r"\$\w+", ".*", query) for query in asked]


def exported_by_ray() -> set[str]:
    """Names of the gauges of nodes, by the source of Ray's agent; to import it would start half of Ray."""
    spec = importlib.util.find_spec("ray.dashboard.modules.reporter.reporter_agent")
    assert spec is not None and spec.origin is not None
    found = re.findall(r'^    "(node_\w+)": Gauge\($', Path(spec.origin).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) > 20
    return {f"ray_{name}" for name in found}


def test_every_metric_that_is_asked_for_is_exported() -> None:
    ours = {f"ray_{name}" for name in GAUGES}
    texts = [*(rule["expr"] for rule in RULES), *queries()]
    named = [set(re.findall(r"\b[a-z]+_\w+\b", re.sub(r"\b\w+_over_time\b", "", text))) for text in texts]
    assert all(named) and set().union(*named) <= ours | exported_by_ray()
    assert set().union(*named[len(RULES) :]) >= ours, "the dashboard shows all of ours"


def test_rays_exporter_puts_ray_before_a_name_and_refuses_what_is_not_finite() -> None:
    """What the rules and the reader of gauges rely on."""
    from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

    recorder = OpenTelemetryMetricRecorder()
    for name, text in GAUGES.items():
        recorder.register_gauge_metric(name, text)
        recorder.set_metric_value(name, {"run": "toy-0"}, float("nan") if name == VALIDATION else 2.0)
    lines = generate_latest().decode().splitlines()
    values = {line.split("{")[0]: line.split()[-1] for line in lines if line.startswith("ray_scalablevit_")}
    assert values == {f"ray_{name}": "2.0" for name in GAUGES if name != VALIDATION}
    assert all(f"# TYPE ray_{name} gauge" in lines for name in GAUGES if name != VALIDATION)


def test_at_most_ten_gauges_are_ours_and_the_page_has_them() -> None:
    rows = re.findall(r"^\| `ray_(scalablevit_\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert dict(rows) == GAUGES and len(rows) == len(GAUGES) <= 10
    alerts = re.findall(r"^\| `(T\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert [name for name, _ in alerts] == [rule["alert"] for rule in RULES]


def test_the_dashboards_panels_fit_and_each_has_a_query() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources) and len(sources) > 1
    assert not [each for each in combinations(panels, 2) if overlap(*(panel["gridPos"] for panel in each))]
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__all"} == VARIABLES


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))


@pytest.mark.parametrize(
    "arguments", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"]
)
def test_promtool_takes_rules_and_configuration(arguments: str) -> None:
    promtool(*arguments.split(), folder=METRICS)


def test_every_rule_has_a_case_that_fires_and_one_that_does_not() -> None:
    tests = yaml.safe_load((METRICS / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) == fires} == {
            rule["alert"] for rule in RULES
        }


def test_promtool_takes_the_dashboards_queries(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", "panels.yml", folder=tmp_path)
