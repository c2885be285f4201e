"""The report of a job: its HTML, held against the run folders that it is made of."""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from harness.html_page import HtmlPage
from harness.job_folder import SEARCH, write_page, write_search
from harness.toys import leave_status

from scalablevit.cli import report
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.pipeline.report import publish_job
from scalablevit.pipeline.stage import Job
from scalablevit.report.collect import gather
from scalablevit.report.overview import steps_of_stages
from scalablevit.report.page import CLASSES, LOWEST, MATRIX_CLASSES, UnreadStage, curves, precision, remarks, render
from scalablevit.run_files import INDEX, JOB, RECIPE, REPORT, SPACE, TRIAL_TABLE
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Best
from scalablevit.tracking.outbox import Outbox, read_lines
from scalablevit.viz.palette import class_hex


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Root, stages and results of a job whose page is made."""
    root = tmp_path_factory.mktemp("root")
    _, stages, results = write_page(root)
    return root, stages, results


@pytest.fixture(scope="module")
def page(job):
    return HtmlPage((job[0] / "runs" / "tiny-0" / REPORT).read_text())


def test_the_page_needs_nothing_besides_itself(job, page):
    assert page.loads() == [] and page.all("script") == [] and page.all("iframe") == []
    text = (job[0] / "runs" / "tiny-0" / REPORT).read_text()
    assert not re.search(r"@import|url\(\s*['\"]?(?!#|data:)", text)


def test_whoever_does_not_see_the_page_is_told(page):
    headings = page.headings()
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert page.all("img") and all(image["alt"].strip() for image in page.all("img"))
    drawings = [attributes for _, attributes in page.elements if attributes.get("role") == "img"]
    assert len(drawings) >= 3 * 4 and len(drawings) == len(page.all("svg"))
    assert all(drawing["aria-label"] for drawing in drawings)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = [value.removeprefix("#") for value in page.values("href") if value.startswith("#")]
    assert set(wanted + page.values("aria-labelledby")) <= set(ids)
    assert page.all("html") == [{"lang": "en"}]


def test_the_metrics_are_those_of_the_results(job, page):
    for name, result in job[2].items():
        kept = json.loads((job[0] / "runs" / result.run_name / "result.json").read_text())
        expected = {**kept["metrics"], "value": kept["value"], "last_value": kept["last_value"]}
        expected |= {f"profile/{part}": seconds for part, seconds in kept["profile"].items()}
        shown = {metric.partition(":")[2]: values for metric, values in page.metrics.items()
                 if metric.startswith(f"{name}:")}  # fmt: skip
        assert shown == {metric: {value} for metric, value in expected.items()}


def test_the_first_screen_says_when_how_long_on_what_and_what_next(job):
    root = job[0]
    page = gather(root / "runs" / "tiny-0")
    first = HtmlPage(render(replace(page, stages=(), searches=())).replace("\n", " ")).text
    assert re.search(r"started\s*2\d{3}-\d\d-\d\d \d\d:\d\d UTC\s*took\s*6.1 min in 3 stages", first)
    assert "1 worker x (1 CPU), A chip" in first or "2 workers x (1 CPU), A chip" in first
    assert f"scalablevit predict tiny-detect-0 IMAGES --out predictions --root {root}" in first
    assert f"scalablevit promote tiny-detect --root {root}" in first
    html = render(page)
    assert html.index('class="results"') < html.index("What to do next") < html.index("Stage pretrain</h2>")


def test_stages_fold_unless_there_is_one(job):
    several, one = (render(gather(job[0] / "runs" / name)) for name in ("tiny-0", "tiny-detect-0"))
    assert several.count("<details>\n<summary><h2>Stage") == 3 and "<details open" not in several
    assert one.count("<details open>\n<summary><h2>Stage") == 1


def test_what_is_right_and_wrong_has_a_colour_and_a_shape(job):
    stage = gather(job[0] / "runs" / "tiny-pretrain-0").stages[0]
    outcomes = ("right", "partly", "wrong", None)
    cases = tuple(replace(stage.findings.cases[0], outcome=outcome) for outcome in outcomes)
    marked = replace(stage, findings=replace(stage.findings, cases=cases, worst=()))
    html = render(replace(gather(job[0] / "runs" / "tiny-pretrain-0"), stages=(marked,)))
    figures = re.findall(r"<figure([^>]*)>\s*<img.*?</figure>", html, re.DOTALL)
    assert figures == [' class="right"', ' class="partly"', ' class="wrong"', ""]
    for outcome, shape in (("right", "✓"), ("partly", "◐"), ("wrong", "✕")):
        assert f'<span class="mark {outcome}"><span aria-hidden="true">{shape}</span>' in html
    wrong = sum(label != prediction for label, prediction, _ in stage.findings.details["confusions"])
    right = len(stage.findings.details["confusions"]) - wrong
    classes = len(stage.result["classes"])
    assert html.count('<td class="miss"') == wrong > 0 and html.count('<td class="hit"') == classes >= right


def test_classes_and_facts_without_data_are_folded(job):
    page = gather(job[0] / "runs" / "tiny-segment-0")
    stage = page.stages[0]
    first, *others = stage.result["classes"]
    metrics = {name: value for name, value in stage.result["metrics"].items() if name != f"val/iou/{first}"}
    statistics = (("", "training", "validation"), ("images", "8", "8"), ("pixels of x", "0 (0 %)", "0"))
    thinned = replace(stage, result={**stage.result, "metrics": metrics}, statistics=statistics)
    html = render(replace(page, stages=(thinned,)))
    assert f'<summary>1 class without validation data</summary><p class="note">{first}</p>' in html
    assert f'class="name">{first}<' not in html and all(f'class="name">{name}<' in html for name in others)
    folded = html[html.index("1 row without data") :]
    assert "pixels of x" in folded and "pixels of x" not in html[: -len(folded)]


def test_of_many_classes_the_lowest_stand_first(job):
    page = gather(job[0] / "runs" / "tiny-segment-0")
    classes = tuple(f"c{number}" for number in range(CLASSES + 1))
    metrics = {"val/miou": 0.5} | {f"val/iou/{name}": 1 - number / 100 for number, name in enumerate(classes)}
    stage = replace(page.stages[0], result={**page.stages[0].result, "classes": classes, "metrics": metrics})
    html = render(replace(page, stages=(stage,)))
    names = re.findall(r'class="name">([^<]+)<', html)
    assert names == [*classes[: -LOWEST - 1 : -1], *classes[:-LOWEST]]
    assert (
        f"the lowest {LOWEST} of {CLASSES + 1} classes" in html and f"The other {CLASSES + 1 - LOWEST} classes" in html
    )
    assert remarks(stage)[0] == f"Weakest class: c{CLASSES} (iou 0.8000)."


def test_many_classes_at_zero_are_counted_and_none_is_called_the_weakest(job):
    stage = gather(job[0] / "runs" / "tiny-segment-0").stages[0]
    classes = stage.result["classes"]
    metrics = {f"val/iou/{name}": 0.2 * (index == 0) for index, name in enumerate(classes)}
    told = replace(stage, result={**stage.result, "metrics": metrics})
    assert remarks(told)[0] == f"{len(classes) - 1} of {len(classes)} classes have iou 0."


def test_a_model_that_has_learned_nothing_is_not_offered_for_promotion():
    result = {"name": "detect", "run_name": "my-detect-0", "registered_as": "my-detect", "metric": "val/box_ap",
              "value": 0.0003, "classes": ("a", "b")}  # fmt: skip
    folder = Path("/root/runs/my-0")
    predict, again = steps_of_stages(folder, [(result, "my-detect v1")], "", unfinished=False)
    assert predict.command.startswith("scalablevit predict my-detect-0 ")
    assert again.words.startswith("Train again before you use it: box_ap 0.0003 is no better than chance")
    _, promote = steps_of_stages(folder, [({**result, "value": 0.2}, "my-detect v1")], "", unfinished=False)
    assert promote.command == "scalablevit promote my-detect --root /root"


def test_what_stands_out_is_said(job):
    stage = gather(job[0] / "runs" / "tiny-pretrain-0").stages[0]
    details = {"confusions": [[0, 0, 5], [0, 1, 1], [1, 0, 2]]}
    classes = stage.result["classes"]
    result = {**stage.result, "last_step": 12, "metrics": {"val/bad_samples": 2.0}}
    shared = (("", "training", "validation"), ("also in training", "", "3 of 8"))
    told = replace(stage, result=result, findings=replace(stage.findings, details=details), statistics=shared)
    assert remarks(told) == [
        f"Most frequent confusion: {classes[1]} taken for {classes[0]}, 2 of 8 images.",
        "The last evaluation was the best one: a longer training may reach more.",
        "2 validation images could not be decoded.",
        "3 of 8 validation images are also in the training split: the metrics may be too good.",
    ]
    assert remarks(replace(stage, result=None)) == []


@pytest.fixture
def gone(job, tmp_path):
    """The job, whose first stage names a package that is not here."""
    shutil.copytree(job[0] / "runs", tmp_path / "runs")
    recipe = tmp_path / "runs" / "tiny-pretrain-0" / RECIPE
    recipe.write_text(f"{recipe.read_text()}imports: [gone_package]\n")
    return tmp_path / "runs" / "tiny-0"


def test_a_stage_whose_package_is_gone_says_so_and_the_others_are_shown(gone, capsys):
    assert report.run(parse("report", [str(gone)])) == 0
    assert "stage pretrain: finished; " in capsys.readouterr().out
    html = (gone / REPORT).read_text()
    page = HtmlPage(html)
    first, second, third = html.split('<div id="stage-')[1:]
    assert (
        "there is no package gone_package" in first and "PYTHONPATH" in first and "gone_package" not in second + third
    )
    assert page.metrics["pretrain:value"] == {2 / 3} and "pretrain:val/top1" not in page.metrics
    assert "segment:val/miou" in page.metrics and "detect:val/box_ap" in page.metrics


def test_the_index_has_all_runs_the_latest_first(job, tmp_path, capsys):
    shutil.copytree(job[0] / "runs", tmp_path / "runs")
    best = Best("val/box_ap", 0.25, 6)
    for name, started, changes in (
        ("tiny-0", 100.0, {"unit": "stages", "step": 1, "total": 3}),
        ("tiny-pretrain-0", 110.0, {}),
        ("tiny-detect-0", 120.0, {"state": "failed", "why": "workers <died>", "best": best}),
        (SEARCH, 300.0, {"unit": "trials"}),
    ):
        leave_status(tmp_path / "runs" / name, started=started, ended=started + 60, **changes)
    (tmp_path / "runs" / "tiny-segment-0" / "status.json").write_text("{}")
    assert report.run(parse("report", ["--index", "--root", str(tmp_path), "--dry-run"])) == 0
    assert not (tmp_path / "runs" / INDEX).exists()
    assert report.run(parse("report", ["--index", "--root", str(tmp_path)])) == 0
    assert f"4 runs, 1 unreadable\nindex: {tmp_path}/runs/{INDEX}" in capsys.readouterr().out
    html = (tmp_path / "runs" / INDEX).read_text()
    page = HtmlPage(html)
    rows = re.findall(r'<tr( class="sub")?><th scope="row">(?:<a href="([^"]+)">)?([^<]+)', html)
    assert rows == [
        ("", "", SEARCH),
        ("", "tiny-0/report.html", "tiny-0"),
        (' class="sub"', "tiny-0/report.html#stage-1", "tiny-pretrain-0"),
        (' class="sub"', "tiny-0/report.html#stage-3", "tiny-detect-0"),
        ("", "", "tiny-segment-0"),
    ]
    assert "box_ap 0.2500" in page.text and "workers <died>" in page.text and "1970-01-01 00:05 UTC" in page.text
    assert re.findall(r'class="state (\w+)"', html) == ["finished", "finished", "finished", "failed", "unreadable"]
    assert page.all("script") == [] and all(each.startswith("tiny-0/") for each in page.loads())


@pytest.mark.parametrize("content", ["{", "{}", '{"stages": [{}]}'])
def test_a_damaged_job_ends_no_index(job, tmp_path, content):
    shutil.copytree(job[0] / "runs", tmp_path / "runs")
    leave_status(tmp_path / "runs" / "tiny-0", started=1.0)
    (tmp_path / "runs" / "tiny-0" / "job.json").write_text(content)
    assert report.run(parse("report", ["--index", "--root", str(tmp_path)])) == 0
    assert "tiny-0" in HtmlPage((tmp_path / "runs" / INDEX).read_text()).text


def test_a_run_or_the_index_is_made_not_both_and_not_neither(tmp_path):
    for arguments in (["tiny-0", "--index"], []):
        with pytest.raises(UserError, match="name a run to make its report, or --index"):
            report.run(parse("report", [*arguments, "--root", str(tmp_path)]))
    with pytest.raises(UserError, match="there are no runs"):
        report.run(parse("report", ["--index", "--root", str(tmp_path)]))


def test_each_stage_has_its_kind_of_picture(job, page):
    matrices = [each for each in page.all("table") if each.get("class") == "matrix"]
    assert len(matrices) == 2  # classification and segmentation
    labels = " ".join(page.values("aria-label"))
    assert labels.count("Precision by recall") == 1 and "Loss by step: train/loss from 2 to 1.5" in labels
    pictures = [image["src"] for image in page.all("img") if image["src"].startswith("data:image/jpeg")]
    assert len(pictures) >= 3 * (6 + 4)


def test_lineage_goes_from_the_data_to_the_version(page):
    for fact in ("content:4711", "random weights (seed 0)", "2" * 64, "tiny-detect version 3", f"trial 1 of {SEARCH}",
                 "8 training images", "step_000000012-0"):  # fmt: skip
        assert fact in page.text
    assert "nothing ignored" not in page.text


def test_a_search_is_shown_with_the_stage_that_it_was_for(page):
    assert f"Search {SEARCH}" in page.text
    trials = page.text[page.text.index("optimizer.lr") :]
    assert trials.index("0.75") < trials.index("0.001879") < trials.index("out of memory")
    assert len([image for image in page.all("img") if image["src"].startswith("data:image/png")]) == 2


def test_the_page_goes_to_mlflow_through_the_outbox(job):
    folder = job[0] / "runs" / "tiny-0"
    records = [line.record for line in read_lines(folder / "outbox") if line.record is not None]
    assert [(each.kind, each.uid, each.path) for each in records] == [("artifact", "1" * 32, str(folder / REPORT))]


def test_images_of_the_data_stay_here_unless_the_recipe_sends_them(job, tmp_path):
    root, stages, results = job
    shutil.copytree(root / "runs", tmp_path / "runs")
    theirs = [replace(each, stage=each.stage.model_copy(update={"data": each.stage.data.model_copy(
              update={"shapes": None})})) for each in stages[:2]]  # fmt: skip
    mixed = [*theirs, stages[2]]
    store = RunStore("tiny-0", str(tmp_path / "runs" / "tiny-0"), tmp_path / "runs" / "tiny-0")
    outbox = Outbox(tmp_path / "outbox")
    publish_job(Job(tmp_path, "tiny", "1" * 32, "sqlite://"), mixed, results, store, outbox)
    outbox.close()
    (record,) = (line.record for line in read_lines(tmp_path / "outbox"))
    sent = HtmlPage(Path(record.path).read_text())
    here = HtmlPage((store.local / REPORT).read_text())
    assert Path(record.path).name == REPORT and Path(record.path) != store.local / REPORT
    assert sent.text == here.text and sent.metrics == here.metrics
    pictures = [[image["src"] for image in page.all("img") if image["src"].startswith("data:image/jpeg")]
                for page in (here, sent)]  # fmt: skip
    changed = [one != other for one, other in zip(*pictures, strict=True)]
    assert 0 < sum(changed) < len(changed)
    grey = {other for one, other in zip(*pictures, strict=True) if one != other}
    assert len(grey) == 1 and not grey & set(pictures[0])
    findings = json.loads((tmp_path / "runs" / "tiny-detect-0" / "examination" / "findings.json").read_text())
    assert changed.count(False) == len(findings["cases"]) + len(findings["worst"])


def test_a_page_is_made_again_by_name_and_by_path(job, capsys):
    root = job[0]
    made = root / "runs" / "tiny-segment-0" / REPORT
    assert report.run(parse("report", ["tiny-segment-0", "--root", str(root), "--dry-run"])) == 0 and not made.exists()
    assert report.run(parse("report", [str(root / "runs" / "tiny-segment-0")])) == 0
    assert "tiny-segment-0" in HtmlPage(made.read_text()).text
    made.unlink()
    assert report.run(parse("report", [SEARCH, "--root", str(root)])) == 0
    assert "stage segment: finished" in capsys.readouterr().out


def test_other_folders_are_refused(job):
    with pytest.raises(UserError, match="no job, stage or search"):
        report.run(parse("report", ["nothing", "--root", str(job[0])]))


def test_a_failed_stage_is_shown_with_its_reason_and_without_metrics(job, tmp_path):
    """The first stage failed, of the others nothing is there yet; the root was moved."""
    root = job[0]
    local = tmp_path / "runs" / "tiny-pretrain-0"
    shutil.copytree(root / "runs" / "tiny-pretrain-0", local, ignore=shutil.ignore_patterns("result.json"))
    leave_status(local, state="failed", why="workers <died>")
    folder = tmp_path / "runs" / "tiny-0"
    folder.mkdir()
    shutil.copy(root / "runs" / "tiny-0" / JOB, folder)
    page = HtmlPage(render(gather(folder)))
    assert "workers <died>" in page.text and "segment, detect" in page.text
    assert page.metrics == {} and "Best checkpoint" not in page.text


def test_a_stage_whose_storage_is_elsewhere_is_shown_as_it_is(job, tmp_path):
    """Its result, identity and start lie there."""
    local, there = tmp_path / "runs" / "tiny-segment-0", tmp_path / "storage" / "tiny-segment-0"
    shutil.copytree(job[0] / "runs" / "tiny-segment-0", local)
    there.mkdir(parents=True)
    for name in ("result.json", "run.json", "start.txt"):
        (local / name).rename(there / name)
    leave_status(local, state="finished", folder=str(there))
    (stage,), (expected,) = gather(local).stages, gather(job[0] / "runs" / "tiny-segment-0").stages
    assert (stage.state, stage.result, list(stage.rows)) == ("finished", expected.result, list(expected.rows))
    assert stage.lineage["Start of the last attempt"] == "random weights (seed 0)"


def test_a_page_that_cannot_be_made_is_said_and_ends_nothing(job, tmp_path, capsys):
    root, stages, results = job
    (tmp_path / "runs").mkdir()
    store = RunStore("tiny-0", "", tmp_path / "runs" / "absent" / "tiny-0")
    store.local.parent.touch()  # no folder
    outbox = Outbox(tmp_path / "outbox")
    publish_job(Job(root, "tiny", "1" * 32, ""), stages, results, store, outbox)
    outbox.close()
    assert f"{REPORT} was not made, or not recorded for MLflow: " in capsys.readouterr().out


def test_names_and_recipes_cannot_break_out_and_passwords_are_masked(job, tmp_path):
    folder = tmp_path / "runs" / "tiny-segment-0"
    shutil.copytree(job[0] / "runs" / "tiny-segment-0", folder)
    evil = "'\"></pre><script>alert(1)</script>"
    with (folder / "recipe.yaml").open("a") as file:
        file.write(f"# {evil}\n# mirror: https://someone:canary-4711@host/?token=canary-4711\n")
    shown = gather(folder)
    stage = shown.stages[0]
    classes = (evil, *stage.result["classes"][1:])
    metrics = {**stage.result["metrics"], f"val/iou/{evil}": 0.5}
    worst = tuple(replace(case, file=evil, words=evil) for case in stage.findings.worst)
    hostile = replace(stage, result={**stage.result, "classes": classes, "metrics": metrics}, name=evil,
                      findings=replace(stage.findings, worst=worst))  # fmt: skip
    html = render(replace(shown, stages=(hostile,)))
    page = HtmlPage(html)
    assert page.all("script") == [] and page.text.count(evil) > 5
    assert "canary-4711" not in html and "mirror: https://***@host/?token=***" in page.text


@pytest.mark.parametrize("others", [True, False])
def test_a_trial_that_failed_is_never_the_best(tmp_path, others):
    """`best_recipe.yaml` leaves failed trials out, too."""
    write_search(tmp_path / SEARCH)
    table = tmp_path / SEARCH / TRIAL_TABLE
    rows = table.read_text() if others else table.read_text().partition("\n")[0] + "\n"
    table.write_text(rows + "3,failed,0.99,3,0.5,0.7,the disk is full\n")
    (search,) = gather(tmp_path / SEARCH).searches
    assert [row[0] for row in search.trials] == (["1", "0", "3", "2"] if others else ["3"])
    assert search.facts["best"].partition(",")[0] == ("trial 1" if others else "")


def test_a_trial_that_failed_shows_no_password(tmp_path):
    write_search(tmp_path / SEARCH)
    with (tmp_path / SEARCH / TRIAL_TABLE).open("a") as file:
        file.write("3,failed,,,0.0,0.5,OSError: s3://key:canary-4711@bucket/x: denied\n")
    html = render(gather(tmp_path / SEARCH))
    assert "canary-4711" not in html and "OSError: s3://***@bucket/x: denied" in HtmlPage(html).text


def test_many_classes_are_told_by_their_most_frequent_confusions(job):
    stage = gather(job[0] / "runs" / "tiny-pretrain-0").stages[0]
    classes = tuple(f"class {number}" for number in range(MATRIX_CLASSES + 1))
    details = {"confusions": [[0, 20, 3], [1, 1, 9], [7, 2, 5]]}
    many = replace(stage, result={**stage.result, "classes": classes},
                   findings=replace(stage.findings, details=details))  # fmt: skip
    page = HtmlPage(render(replace(gather(job[0] / "runs" / "tiny-pretrain-0"), stages=(many,))))
    assert not [each for each in page.all("table") if each.get("class") == "matrix"]
    assert page.text.index("class 7") < page.text.index("class 20") and "class 1\n" not in page.text


def test_a_class_has_one_colour_on_the_page_and_in_its_pictures(job):
    """The palette's by its number, as in `tests/viz/test_palette.py`: of bars, curves, and what single images show."""
    page = gather(job[0] / "runs" / "tiny-0")
    sections = render(page).split('<div id="stage-')[1:]
    bar = r'class="name">([^<]+)</th><td class="bar"[^>]*><span style="width:[^;]+;background:([^"]+)"'
    for stage, section in zip(page.stages[1:], sections[1:], strict=False):  # classification has no metrics of classes
        palette = {name: class_hex(number) for number, name in enumerate(stage.result["classes"])}
        assert set(re.findall(bar, section)) == set(palette.items())
        keys = [case.classes for case in stage.findings.cases + stage.findings.worst]
        assert any(keys) and all(key.items() <= palette.items() for key in keys)
    lines = re.findall(r"stroke: ([^;]+); stroke-width: 1\.6", precision(stage, 1).svg)
    assert lines == ["currentColor", *(palette[name] for name in sorted(palette))] * 2  # the chart, and its legend


def test_a_class_called_mean_is_not_the_mean_of_all(job):
    stage = gather(job[0] / "runs" / "tiny-detect-0").stages[0]
    details = {"precision": {"mean": [1.0] * 101, "_$^$": [0.5] * 101}}
    drawn = precision(replace(stage, findings=replace(stage.findings, details=details)), 1)
    assert drawn.words == "Precision by recall; mean precision: mean of all 0.75, _$^$ 0.50, mean 1.00"
    assert all(f">{name}<" in drawn.svg for name in ("mean of all", "_$^$", "mean"))


def test_the_evaluation_is_marked_whose_weights_are_kept(job, monkeypatch):
    """A best checkpoint that could not be written leaves an earlier one; without a result the best metric tells."""
    marks = []
    monkeypatch.setattr("scalablevit.report.page.line_chart", lambda *_, **options: marks.append(options.get("mark")))
    stage = gather(job[0] / "runs" / "tiny-pretrain-0").stages[0]
    for result in ({**stage.result, "step": 6}, None):
        curves(replace(stage, result=result), 1)
    assert [mark for mark in marks if mark is not None] == [6, 12]


def test_damaged_findings_are_named(job, tmp_path):
    folder = tmp_path / "tiny-detect-0"
    shutil.copytree(job[0] / "runs" / "tiny-detect-0", folder)
    (folder / "examination" / "findings.json").write_text('{"images": 1}')
    with pytest.raises(UserError, match="not readable as findings"):
        gather(folder)


@pytest.mark.parametrize("content", [b"data: [", b"data: \xff", b""])
def test_a_stage_whose_recipe_is_damaged_says_so(job, tmp_path, content):
    shutil.copytree(job[0] / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "tiny-pretrain-0" / RECIPE).write_bytes(content)
    first, *others = gather(tmp_path / "runs" / "tiny-0").stages
    assert isinstance(first, UnreadStage) and first.name == "pretrain"
    assert f"{RECIPE}: {'not readable as YAML' if content else 'holds no stage'}" in first.problem
    assert [stage.name for stage in others] == ["segment", "detect"]


@pytest.mark.parametrize("content", [b"metric: [", b"metric: \xff", b""])
def test_a_search_whose_space_is_damaged_is_named(tmp_path, content):
    write_search(tmp_path / SEARCH)
    (tmp_path / SEARCH / SPACE).write_bytes(content)
    with pytest.raises(UserError, match=r"space.yaml: (not readable as YAML|holds no stage)"):
        gather(tmp_path / SEARCH)


def test_a_search_that_has_not_ended_has_no_page(tmp_path):
    (tmp_path / "space.yaml").write_text("metric: val/top1\n")
    with pytest.raises(UserError, match="has not ended"):
        gather(tmp_path)
