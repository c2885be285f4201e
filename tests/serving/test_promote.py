"""From candidate to champion and back: the alias moves only through the gate, and why is written down."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from harness.receiver import receiving
from harness.toys import SIDE, finished_run, register, stage_of, val_images
from mlflow import MlflowClient

from scalablevit.cli import pack, predict, promote
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.data.sources.opening import open_source
from scalablevit.run_files import NOTIFICATIONS
from scalablevit.tracking import champion, tags
from scalablevit.tracking.connection import connect
from scalablevit.tracking.outbox import read_lines
from scalablevit.training.data_listing import store_listings

EVEN = ["promotion.margin=-1", "promotion.resamples=100"]  # untrained models: whoever wins, wins by luck


@pytest.fixture
def client(registry: Path) -> MlflowClient:
    return connect(f"sqlite:///{registry}/mlflow.db")


def run(registry: Path, name: str, *more: str) -> int:
    return promote.run(parse("promote", [name, "--root", str(registry), *more]))


def champion_of(client: MlflowClient, name: str) -> int | None:
    return champion.aliases(client.tracking_uri, name).get("champion")


def candidate(client: MlflowClient, name: str, version: int) -> None:
    client.set_registered_model_alias(name, "candidate", str(version))


def test_a_script_gets_one_document(registry, client, capsys):
    name = "toy-pretrain"
    before = champion_of(client, name)
    candidate(client, name, 1 if before == 2 else 2)
    assert run(registry, name, *EVEN, "--dry-run", "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["schema"], found["outcome"], found["moved"]) == ("scalablevit.promote", "promoted", False)
    assert (found["champion"], found["candidate"]) == (before, 1 if before == 2 else 2)
    assert found["evidence"]["candidate"]["version"] == found["candidate"] and "dry run" in said.err
    assert run(registry, name, "promotion.min_value=1.0", "--dry-run", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "refused" and any("below the minimum" in reason for reason in found["reasons"])


def test_the_whole_way_there_and_back(registry, client, capsys):
    name = "toy-pretrain"
    candidate(client, name, 1)
    assert run(registry, name, "promotion.min_value=1.0") == 1
    assert champion_of(client, name) is None
    assert "below the minimum" in client.get_model_version(name, "1").tags[tags.PROMOTION]
    place = client.tracking_uri
    assert f"there is no champion; the reasons are tags of version 1 in {place}\n" in capsys.readouterr().out
    assert run(registry, name) == 0
    said = capsys.readouterr().out
    assert "the limits alone: there was no champion" in said and f"@champion is version 1 in {place}; `" in said
    assert f"{name} --rollback tracking.uri={place}` takes it back\n" in said  # the root is not the usual one
    assert champion_of(client, name) == 1
    assert run(registry, name) == 0
    assert "is the champion already: nothing was evaluated or moved" in capsys.readouterr().out

    candidate(client, name, 2)
    assert run(registry, name, "promotion.margin=1.0", "promotion.resamples=100") == 1
    assert champion_of(client, name) == 1
    refused = client.get_model_version(name, "2").tags
    assert refused[tags.PROMOTION].startswith("refused against champion version 1: the gain")
    assert tags.PREVIOUS_CHAMPION not in refused
    assert f"@champion stays version 1; the reasons are tags of version 2 in {place}\n" in capsys.readouterr().out
    assert run(registry, name, *EVEN, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"{name} version 2: would be promoted against champion version 1" in said
    assert (
        f"nothing was written or moved; models:/{name}@champion would be version 2, and not 1 any more, in {place}\n"
        in said
    )
    assert champion_of(client, name) == 1 and client.get_model_version(name, "2").tags == refused
    assert run(registry, name, *EVEN) == 0
    said = capsys.readouterr().out
    assert "candidate v2" in said and "champion v1" in said and "95% interval [" in said
    assert champion_of(client, name) == 2
    evidence = json.loads(client.get_model_version(name, "2").tags[tags.PROMOTION_EVIDENCE])
    assert evidence["images"] == 12 and evidence["data_digest"].startswith("content:")
    assert evidence["gain"]["value"] == pytest.approx(evidence["candidate"]["value"] - evidence["champion"]["value"])
    assert evidence["gain"]["low"] <= evidence["gain"]["value"] <= evidence["gain"]["high"]
    assert evidence["candidate"]["measured_on"].endswith(", 1 thread") and evidence["gate"]["margin"] == -1

    assert run(registry, name, "--rollback", "--dry-run") == 0
    assert champion_of(client, name) == 2
    said = capsys.readouterr().out
    assert "champion would go back from version 2 to version 1\ndry run: nothing was written or moved in" in said
    assert run(registry, name, "--rollback") == 0
    assert champion_of(client, name) == 1 and f"@champion is version 1 in {place}\n" in capsys.readouterr().out
    assert "champion is version 1 again" in client.get_model_version(name, "2").tags[tags.ROLLED_BACK]
    with pytest.raises(UserError, match="no champion came before version 1"):
        run(registry, name, "--rollback")


def test_decisions_are_notified_and_dry_runs_are_not(registry, client, monkeypatch):
    name = "toy-notified"
    register(registry, finished_run(registry, "pretrain", seed=11), name)
    asked = "tracking.notify=[promoted, refused]"
    with receiving() as receiver:
        monkeypatch.setenv("SCALABLEVIT_NOTIFY_WEBHOOK", receiver.address)
        with pytest.raises(UserError, match="SCALABLEVIT_NOTIFY_SECRET"):
            run(registry, name, *EVEN, asked)
        monkeypatch.setenv("SCALABLEVIT_NOTIFY_SECRET", "c2l4dGVlbiBieXRlcyBvciBtb3Jl")
        assert run(registry, name, asked, "promotion.min_value=1.0", "--dry-run") == 1
        assert run(registry, name, *EVEN) == 0
        register(registry, finished_run(registry, "pretrain", seed=12), name)
        assert run(registry, name, asked, "promotion.min_value=1.0") == 1
        assert run(registry, name, *EVEN, asked) == 0
    told = [json.loads(body) for _, _, body in receiver.posted]
    assert [(each["event"], each["model"], each["version"], each["stage"]) for each in told] == [
        ("refused", name, 2, None), ("promoted", name, 2, None)]  # fmt: skip
    assert told[0]["run"] == f"models:/{name}/2" and told[0]["metric"] == "top1" and 0 <= told[0]["value"] <= 1
    assert told[0]["where"].endswith(client.tracking_uri)


def test_a_promotion_is_notified_although_its_tags_cannot_be_written(registry, client, monkeypatch):
    """Given again, the command finds that the version is the champion already, and has nothing to notify of."""
    name = "toy-untagged"
    register(registry, finished_run(registry, "pretrain", seed=16), name)
    write = promote.write_tags

    def refuse(uri, model, version, written):
        if tags.PROMOTION in written:
            raise UserError("the server does not respond")
        write(uri, model, version, written)

    monkeypatch.setattr(promote, "write_tags", refuse)
    monkeypatch.setenv("SCALABLEVIT_NOTIFY_COMMAND", "/bin/true")
    with pytest.raises(UserError, match="does not respond"):
        run(registry, name, "tracking.notify=[promoted]")
    assert champion_of(client, name) == 1
    (record,) = [line.record for line in read_lines(registry / NOTIFICATIONS / "command")]
    assert (record.event, record.model, record.version) == ("promoted", name, 1)


def test_the_limits_alone_decide_where_the_champion_cannot_be_compared(registry, client, capsys, monkeypatch):
    name = "toy-limits"
    register(registry, finished_run(registry, "pretrain", seed=5), name)
    assert run(registry, name) == 0
    register(registry, finished_run(registry, "pretrain", seed=6), name)
    made_by = {1: "a" * 64, 2: "b" * 64}
    real = promote._refuse_different_code

    def with_code(versions):
        real([replace(each, config={**each.config, "user_code": {"mine": made_by[each.version]}}) for each in versions])

    monkeypatch.setattr(promote, "_refuse_different_code", with_code)
    with pytest.raises(UserError, match=rf"different mine(?s:.*)promote(\.py)? {name} --limits-alone`") as caught:
        run(registry, name, *EVEN)
    assert "evaluate" in caught.value.fix and champion_of(client, name) == 1
    assert run(registry, name, "--limits-alone", "promotion.min_value=1.0") == 1
    assert champion_of(client, name) == 1
    capsys.readouterr()
    assert run(registry, name, "--limits-alone") == 0
    assert "promoted against the limits alone: not compared with champion version 1\n" in capsys.readouterr().out
    assert champion_of(client, name) == 2
    evidence = json.loads(client.get_model_version(name, "2").tags[tags.PROMOTION_EVIDENCE])
    assert evidence["champion"] is None and evidence["gain"] is None
    assert run(registry, name, "--rollback") == 0 and champion_of(client, name) == 1


@pytest.mark.parametrize("name", ["segment", "detect"])
def test_dense_tasks_are_compared_image_by_image(registry, client, name, capsys):
    for version in (1, 2):
        candidate(client, f"toy-{name}", version)
        assert run(registry, f"toy-{name}", *EVEN) == 0
    evidence = json.loads(client.get_model_version(f"toy-{name}", "2").tags[tags.PROMOTION_EVIDENCE])
    assert evidence["metric"] == {"segment": "miou", "detect": "box_ap"}[name]
    assert evidence["images"] == 12
    assert evidence["gain"]["low"] <= evidence["gain"]["value"] <= evidence["gain"]["high"]


def test_the_champion_looks_at_the_same_files_in_its_own_size(registry, client):
    """A candidate of twice the image size: each answers in the size that it was trained with."""
    name = "toy-sizes"
    sizes = ["stages.pretrain.data.image_size=48", "stages.pretrain.data.eval_resize=48"]
    for seed, given in ((3, []), (4, sizes)):
        register(registry, finished_run(registry, "pretrain", *given, seed=seed), name)
        assert run(registry, name, *EVEN) == 0
    stages = {}
    for version in (1, 2):
        found = promote.resolve_weights(f"models:/{name}/{version}", client.tracking_uri, registry / "cache" / "models")
        resolved = promote._resolve(found, [], registry)
        stages[version] = promote._on_same_data(found, resolved)
        with_other = promote._on_same_data(found, promote._resolve(found, ["data.max_pixels=99999"], registry))
        assert with_other.data.max_pixels == 99999
    assert (stages[1].data.image_size, stages[2].data.image_size) == (32, SIDE)
    assert stages[1].data.root == stages[2].data.root


def test_a_folder_and_its_shards_are_the_same_data(registry, client):
    """Whoever packs a data set does not start anew with a champion."""
    name, folder = "toy-packed", registry / "data" / "classification"
    for split in ("train", "val"):
        pack.run(parse("pack", [str(folder / split), str(registry / "packed" / split)]))
    values = ("source=tar_shards", "root=packed", "train.images=train", "val.images=val")
    packed = [f"stages.pretrain.data.{each}" for each in values]
    for seed, given in ((5, []), (6, packed), (7, [])):
        register(registry, finished_run(registry, "pretrain", *given, seed=seed), name)
        assert run(registry, name, *EVEN) == 0
    assert champion_of(client, name) == 3


def test_a_champion_is_scored_whatever_the_candidates_number_of_workers(registry, client):
    """And in micro-batches as large as in its own training, which its device has room for."""
    name = "toy-workers"
    many = ["cluster.workers=4", "cluster.min_workers=2", "stages.pretrain.training.global_batch_size=16"]
    for seed, given in ((8, ["stages.pretrain.training.global_batch_size=2"]), (9, many)):
        register(registry, finished_run(registry, "pretrain", *given, seed=seed), name)
        assert run(registry, name, *EVEN) == 0
    assert champion_of(client, name) == 2
    found = promote.resolve_weights(f"models:/{name}/2", client.tracking_uri, registry / "cache" / "models")
    stage = promote._on_same_data(found, promote._resolve(found, [], registry))
    assert (stage.cluster.workers, stage.cluster.min_workers, stage.training.global_batch_size) == (1, None, 4)


def test_an_upernet_trained_with_one_image_a_gpu_is_promoted_and_predicts_on_a_cpu(registry, client, tmp_path):
    """Batch norms that share their statistics train on single images; what is trained needs no others."""
    values = ("task={kind: segmentation, head: upernet, head_channels: 16}", "training.global_batch_size=2")
    given = [*(f"stages.segment.{each}" for each in values), "cluster.workers=2", "cluster.gpus_per_worker=1"]
    trained = finished_run(registry, "segment", *given, seed=10)
    register(registry, trained, "toy-upernet")
    assert run(registry, "toy-upernet", *EVEN, "cluster.gpus_per_worker=0") == 0
    assert champion_of(client, "toy-upernet") == 1
    command = [trained, str(val_images(registry, "segment")), "--out", str(tmp_path / "out"), "--root", str(registry)]
    assert predict.run(parse("predict", [*command, "cluster.gpus_per_worker=0"])) == 0


@pytest.mark.parametrize(
    "override",
    [
        "data.image_size=48",
        "task.label_smoothing=0.1",
        "model.name=resnet18",
        "stages.promote.optimizer.lr=1",
        "cluster.workers=2",
        "data={}",
    ],
)
def test_what_would_be_without_effect_is_refused(registry, client, override):
    candidate(client, "toy-pretrain", 1)
    with pytest.raises(UserError, match="no effect") as refused:
        run(registry, "toy-pretrain", "--dry-run", override)
    assert override in str(refused.value) and "promotion" in refused.value.fix and "data.root" in refused.value.fix


def test_data_without_a_readable_image_is_named(registry, client):
    name, bad = "toy-unreadable", registry / "unreadable"
    shutil.copytree(registry / "data" / "classification", bad)
    for image in (bad / "val").rglob("*.jpg"):
        image.write_bytes(b"no image")
    register(registry, finished_run(registry, "pretrain", seed=10), name)
    split = ["data.train.images=train", "data.val.images=val", "data.max_bad_fraction=1"]
    with pytest.raises(UserError, match="none of the 12 validation samples"):
        run(registry, name, "data.root=unreadable", *split)
    assert champion_of(client, name) is None


def test_files_that_cannot_be_decoded_are_counted_up_to_the_limit_of_the_command(registry, client, capsys):
    """Their headers are whole. The limit is one for both, whatever each model's recipe says."""
    name, cut = "toy-cut", registry / "cut"
    shutil.copytree(registry / "data" / "classification", cut)
    image = next((cut / "val").rglob("*.jpg"))
    image.write_bytes(image.read_bytes()[:-20])
    split = ["data.root=cut", "data.train.images=train", "data.val.images=val"]
    register(registry, finished_run(registry, "pretrain", seed=11), name)
    with pytest.raises(UserError, match=r"1 of 12 validation samples could not be decoded.*allows 0\.12"):
        run(registry, name, *split)
    assert run(registry, name, *split, "data.max_bad_fraction=0.1") == 0
    assert "1 of 12 validation images could not be decoded, and are not in it\n" in capsys.readouterr().out
    register(registry, finished_run(registry, "pretrain", seed=12), name)
    assert run(registry, name, *EVEN, *split, "data.max_bad_fraction=0.1") == 0
    evidence = json.loads(client.get_model_version(name, "2").tags[tags.PROMOTION_EVIDENCE])
    assert (evidence["images"], evidence["bad"], evidence["candidate"]["seen"]) == (11, 1, None)


def test_a_candidate_is_not_promoted_on_images_that_it_was_trained_on(registry, client, capsys):
    name, trained, stage = "toy-seen", finished_run(registry, "pretrain", seed=15), stage_of("pretrain")
    train = open_source(stage.data, "train", registry)
    train.read_contents()
    store_listings(str(registry / "runs" / trained), {"train": train})
    register(registry, trained, name)
    assert run(registry, name, "--dry-run") == 0
    assert "  seen    candidate: none of 12 images is among the 18 " in capsys.readouterr().out
    known = f"data.val.images={stage.data.train.images}"
    with pytest.raises(
        UserError, match=f"18 of 18 validation images are among those that models:/{name}/1 was trained"
    ):
        run(registry, name, known)
    assert champion_of(client, name) is None
    assert run(registry, name, known, "data.max_shared_fraction=1") == 0
    evidence = json.loads(client.get_model_version(name, "1").tags[tags.PROMOTION_EVIDENCE])
    assert evidence["candidate"]["seen"] == 18


def test_no_tag_says_promoted_where_the_alias_did_not_move(registry, client, monkeypatch):
    name = "toy-raced"
    register(registry, finished_run(registry, "pretrain", seed=13), name)

    def refuse(*_):
        raise UserError("the champion was version none when this began")

    with monkeypatch.context() as raced:
        raced.setattr(promote, "move_champion", refuse)
        with pytest.raises(UserError, match="when this began"):
            run(registry, name)
    assert tags.PROMOTION not in client.get_model_version(name, "1").tags
    assert run(registry, name) == 0
    register(registry, finished_run(registry, "pretrain", seed=14), name)
    assert run(registry, name, *EVEN) == 0
    monkeypatch.setattr(promote, "move_champion", refuse)
    with pytest.raises(UserError, match="when this began"):
        run(registry, name, "--rollback")
    assert tags.ROLLED_BACK not in client.get_model_version(name, "2").tags


def test_a_mistyped_root_is_named_and_not_made(tmp_path):
    missing = tmp_path / "mistyped"
    with pytest.raises(UserError, match=r"no file .*mlflow\.db"):
        run(missing, "toy-pretrain", "--dry-run")
    assert not missing.exists()


def test_a_champion_that_moved_meanwhile_is_left_alone(registry, client):
    with pytest.raises(UserError, match="somebody else moved it"):
        champion.move_champion(client.tracking_uri, "toy-pretrain", 77, 1)


def test_names_that_are_not_there(registry):
    with pytest.raises(UserError, match="nobody"):
        run(registry, "nobody")


def test_nothing_of_the_registrys_code_is_run(registry, client, root, tmp_path, capsys):
    """Whoever may write there could otherwise run code wherever somebody predicts."""
    stored = Path(client.get_model_version("toy-pretrain", "2").source.removeprefix("file://"))
    for code in stored.rglob("*.py"):
        code.write_text("raise SystemExit('code of a registered model was run')")
    with zipfile.ZipFile(stored / "code" / "scalablevit.zip", "w") as archive:
        archive.writestr("scalablevit/__init__.py", "raise SystemExit('code of a registered model was run')")
    candidate(client, "toy-pretrain", 2)
    assert run(registry, "toy-pretrain", *EVEN, "--dry-run") == 0
    images = root / "data" / "classification" / "val"
    given = ["models:/toy-pretrain@candidate", str(images), "--out", str(tmp_path / "out"), "--root", str(registry)]
    assert predict.run(parse("predict", given)) == 0
    assert (tmp_path / "out" / "labels.csv").is_file()
