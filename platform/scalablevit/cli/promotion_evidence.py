"""What promotion measured of candidate and champion, and its texts."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalablevit.config.commands import command_name
from scalablevit.config.recipe import Stage
from scalablevit.config.root import platform_root
from scalablevit.config.section import PlainValues
from scalablevit.config.task import head_of
from scalablevit.config.task_info import task_info
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.tracking import tags
from scalablevit.tracking.champion import CANDIDATE, CHAMPION
from scalablevit.tracking.connection import tracking_override, without_credentials
from scalablevit.tracking.weights import RegisteredWeights

if TYPE_CHECKING:
    from scalablevit.serving.gate import Gain
    from scalablevit.serving.score import Score


@dataclass(frozen=True)
class Contender:
    """A registered version and its score."""

    version: RegisteredWeights
    score: "Score"
    seen: int | None
    """Images of the evaluation that it was trained on; None: not known."""

    @property
    def weights_mb(self) -> float:
        """Return the size of the weights' file in 10^6 bytes."""
        return self.version.weights.stat().st_size / 1e6


@dataclass(frozen=True)
class MeasuredVersion:
    """What was measured of a version."""

    version: int
    """Number of the registered version."""
    value: float
    """Of the metric, as a fraction."""
    latency_ms: float
    """Median milliseconds of one prediction."""
    measured_on: str
    """Device and threads of the latency, in words."""
    busy: str
    """A note that the machine was busy with other work; empty: it was not."""
    weights_mb: float
    """Size of the weights' file, 10^6 bytes."""
    weights_sha256: str
    seen: int | None
    """Images of the evaluation that it was trained on, by their bytes; None: not known."""


@dataclass(frozen=True)
class Evidence:
    """What the decision is based on; stored as JSON with these names as keys."""

    at: str
    """Time in UTC, such as 2026-01-31T12:00:00Z."""
    metric: str
    """Name of the compared metric, as in `promotion.metric`."""
    images: int
    """Validation images that both were scored on."""
    bad: int
    """Validation images that could not be decoded."""
    data_digest: str
    candidate: MeasuredVersion
    champion: MeasuredVersion | None
    gain: "Gain | None"
    """Of the candidate over the champion; None: there is no champion."""
    gate: PlainValues
    """`promotion` of the recipe."""


def gather_evidence(
    candidate: Contender, champion: Contender | None, gain: "Gain | None", resolved: ResolvedStage
) -> Evidence:
    """Return what was measured of both, and the gate that it is compared with.

    Args:
        candidate: the version to promote.
        champion: the one in use; None: there is none.
        gain: of the candidate over the champion.
        resolved: the candidate's stage on its evaluation data.
    """
    gate = resolved.stage.promotion
    return Evidence(
        at=now(),
        metric=metric_name(resolved.stage),
        images=len(candidate.score.per_sample.indices),
        bad=candidate.score.bad,
        data_digest=resolved.digest,
        candidate=_measured_version(candidate),
        champion=None if champion is None else _measured_version(champion),
        gain=gain,
        gate=gate.model_dump(mode="json", exclude={"metric"}),
    )


def _measured_version(contender: Contender) -> MeasuredVersion:
    from scalablevit.serving.gate import metric_of

    return MeasuredVersion(
        version=contender.version.version,
        value=metric_of(contender.score),
        latency_ms=contender.score.latency_ms,
        measured_on=contender.score.measured_on,
        busy=contender.score.busy,
        weights_mb=contender.weights_mb,
        weights_sha256=contender.version.tags[tags.WEIGHTS_SHA256],
        seen=contender.seen,
    )


def format_evidence(evidence: Evidence) -> str:
    """Return a table of candidate and champion, and the gain, as text."""
    columns = {CANDIDATE: evidence.candidate}
    if evidence.champion is not None:
        columns[CHAMPION] = evidence.champion
    heads = "".join(f"{f'{alias} v{measured.version}':>18}" for alias, measured in columns.items())
    lines = [f"\n{'':<14}{heads}"]
    for label, key, digits in ((evidence.metric, "value", 4), ("latency, ms", "latency_ms", 2),
                               ("weights, MB", "weights_mb", 2)):  # fmt: skip
        lines.append(
            f"{label:<14}" + "".join(f"{getattr(measured, key):>18.{digits}f}" for measured in columns.values())
        )
    gain, gate = evidence.gain, evidence.gate
    if gain is not None:
        lines.append(
            f"gain {gain.value:+.4f}, {100 * gate['confidence']:g}% interval "
            f"[{gain.low:+.4f}, {gain.high:+.4f}] "
            f"(paired bootstrap over {evidence.images} images, {gate['resamples']} resamples)"
        )
    if evidence.bad:
        lines.append(f"{evidence.bad} of {evidence.images + evidence.bad} validation images could not be decoded, and "
                     "are not in it")  # fmt: skip
    machines = dict.fromkeys(measured.measured_on for measured in columns.values())
    lines.append(f"latency of one prediction at a time on {' and '.join(machines)}")
    lines += [f"note, {alias}: {measured.busy}" for alias, measured in columns.items() if measured.busy]
    return "\n".join(lines)


def format_outcome(
    uri: str, candidate: Contender, before: int | None, missed: Sequence[str], *, dry_run: bool = False
) -> str:
    """Return which version has the alias, or would have it without --dry-run, and in which registry.

    Args:
        uri: MLflow's address.
        candidate: the version that was compared.
        before: number of the champion so far; None: there was none.
        missed: why the gate refuses; empty: it passes.
        dry_run: nothing was done.
    """
    name, version = candidate.version.name, candidate.version.version
    alias, address = f"models:/{name}@{CHAMPION}", without_credentials(uri)
    if missed:
        stays = f"{alias} {'would stay' if dry_run else 'stays'} version {before}" if before else "there is no champion"
        return f"{stays}; the reasons {'would be' if dry_run else 'are'} tags of version {version} in {address}"
    if dry_run:
        return f"{alias} would be version {version}{f', and not {before} any more' if before else ''}, in {address}"
    where = tracking_override(uri, platform_root(None, make=False))
    back = f"{command_name('promote')} {shlex.quote(name)} --rollback{where}"
    return f"{alias} is version {version} in {address}; `{back}` takes it back"


def metric_name(stage: Stage) -> str:
    """Return the metric by which versions of a stage are compared."""
    return stage.promotion.metric or task_info(stage.task.kind).promotion_metrics(head_of(stage.task))[0]


def now() -> str:
    """Return the time in UTC as tags have it, such as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
