"""Seconds that a plain trial costs beyond its context, and what a search of 40 of them leaves behind.

    python tests/benchmarks/tune_overhead.py

The context of a trial is slept: 4 epochs of 0.2 s, each with a result, as the platform's trials report. Run on a quiet
machine with a head of its own. The time is printed as met or missed; anything left behind ends with exit code 1.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.state import list_actors, list_placement_groups

from scalablevit.config.space_loading import load_search
from scalablevit.config.trial import trial_stage
from scalablevit.tracking.outbox import Outbox
from scalablevit.tuning.search import SearchCallback, open_trials, run_trials
from scalablevit.tuning.trial import TrialContext, TrialReporter

REPOSITORY = Path(__file__).parents[2]
TRIALS, EPOCHS, WORK_S, BAR_S = 40, 4, 0.2, 1.5


def sleep_trial(config: dict[str, Any], context: TrialContext) -> None:
    """A trial without training."""
    reports = TrialReporter(context, trial_stage(context.search, config["trial"]["values"]), {})
    for epoch in range(EPOCHS):
        time.sleep(WORK_S)
        metrics = {context.search.space.metric: epoch / EPOCHS}
        for result in reports.add([{"step": epoch + 1, "time_ms": int(time.time() * 1000), "metrics": metrics}]):
            tune.report(result)


def main() -> int:
    overrides = ["space.searcher=random", "space.scheduler={kind: none}", f"space.budget.trials={TRIALS}"]
    search = load_search(REPOSITORY / "tune_spaces" / "demo.yaml", overrides)
    ray.init(address="local", num_cpus=2, include_dashboard=True, logging_level="ERROR", log_to_driver=False,
             runtime_env={"py_modules": [str(REPOSITORY / "platform" / "scalablevit")]})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        context = TrialContext(search, folder, folder, 64 * EPOCHS, None, "", True)
        outbox = Outbox(Path(folder) / "outbox")
        callback = SearchCallback(context, open_trials(search, folder), outbox, "0" * 32, "overhead")
        begun = time.monotonic()
        run_trials(callback, context, concurrency=2, remaining_s=None, trainable=sleep_trial)
        took = time.monotonic() - begun
        outbox.close()
    assert all(len(trial.curve) == EPOCHS for trial in callback.trials), "a trial lost results"
    slept = TRIALS * EPOCHS * WORK_S / 2  # two at once
    each = (took - slept) / TRIALS
    left = leftovers()
    print(f"{TRIALS} trials, 2 at once: {took:.1f} s, of which {slept:.1f} s work; {each:.2f} s a trial beyond it "
          f"(bar {BAR_S} s: {'met' if each <= BAR_S else 'missed'})")  # fmt: skip
    print(f"left behind: {left or 'nothing'}")
    print(json.dumps({"seconds_per_trial": each, "left": left}))
    return 1 if left else 0


def leftovers() -> list[str]:
    """Placement groups and actors that are still there a while after the search."""
    for _ in range(30):
        groups = [f"placement group {g.placement_group_id}" for g in list_placement_groups() if g.state != "REMOVED"]
        actors = [f"actor {a.class_name} (process {a.pid})" for a in list_actors() if a.state != "DEAD"]
        if not groups and not actors:
            return []
        time.sleep(1)
    return groups + actors


if __name__ == "__main__":
    sys.exit(main())
