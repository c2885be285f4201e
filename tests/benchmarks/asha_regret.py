"""What ASHA saves and what it costs: the same trials stopped early and run in full.

    python tests/benchmarks/asha_regret.py <folder of the full search> <folder of the ASHA search> [epochs per rung ...]

Both folders are searches of the same space and seed, one with `space.scheduler.kind=none`. Printed are the epochs that
each used, and the regret: how much less the trial that ASHA chose reaches, trained in full, than the best of all. The
interval is a bootstrap: ASHA, by Ray's own rule, over the recorded full curves of trials drawn with replacement in
random orders, as many at once as in the search.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from ray.tune.schedulers.async_hyperband import _Bracket

from scalablevit.tuning.trials import load_trials, rank_trials

RESAMPLES, SEED = 2000, 0
BAR = 0.4


def main() -> int:
    options = parse()
    space = yaml.safe_load((options.asha / "space.yaml").read_text())
    full, asha = load_trials(str(options.full)), load_trials(str(options.asha))
    same = [trial.values for trial in full] == [trial.values for trial in asha]
    curves = np.array([[value for _, value in sorted(trial.curve.items())] for trial in full])
    if not same or any(trial.status != "finished" for trial in full):
        print("the folders are not the same trials, or the full search has not finished")
        return 1
    sign = -1 if space["mode"] == "min" else 1
    interval, total = options.evaluate_every, options.evaluate_every * curves.shape[1]
    best = (sign * curves).max(axis=1)
    chosen = rank_trials(asha, space["mode"])[0]
    used = sum(len(trial.curve) for trial in asha) / curves.size
    print(f"{len(full)} trials of {total:g} epochs, evaluated every {interval:g}; {space['metric']}")
    print(f"in full   {curves.size * interval:7g} epochs, best {sign * best.max():.4f} (trial {best.argmax()})")
    print(f"ASHA      {used * curves.size * interval:7g} epochs = {used:.1%} (bar: at most {BAR:.0%}, "
          f"{'met' if used <= BAR else 'missed'}), chose trial {chosen.number}, which reaches "
          f"{sign * best[chosen.number]:.4f} in full: regret {best.max() - best[chosen.number]:.4f}")  # fmt: skip
    generator = np.random.default_rng(SEED)
    results = []
    for _ in range(RESAMPLES):
        picked = generator.integers(len(full), size=len(full))
        share, regret = simulate(sign * curves[picked], space["scheduler"], interval, options.at_once)
        results.append((share, regret))
    for name, values in zip(("epochs used", "regret"), np.array(results).T, strict=True):
        low, high = np.percentile(values, [2.5, 97.5])
        print(f"bootstrap {name}: mean {values.mean():.4f}, 95 % of {RESAMPLES} orders in [{low:.4f}, {high:.4f}]")
    print(json.dumps({"epochs_used": used, "regret": best.max() - best[chosen.number],
                      "random_choice_regret": float((best.max() - best).mean())}))  # fmt: skip
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("full", type=Path)
    parser.add_argument("asha", type=Path)
    parser.add_argument("--evaluate-every", type=float, default=1.0, help="epochs between evaluations (%(default)s)")
    parser.add_argument("--at-once", type=int, default=2, help="trials at once (%(default)s)")
    return parser.parse_args()


def simulate(curves: np.ndarray, scheduler: dict[str, float], interval: float, at_once: int) -> tuple[float, float]:
    """Share of epochs used and regret when ASHA runs these curves, higher being better, `at_once` side by side."""
    count, points = curves.shape
    rungs = _Bracket(scheduler["grace_epochs"], interval * points + 1, scheduler["reduction_factor"], 0)
    waiting, running, used = list(range(count)), {}, 0
    seen = np.full(count, -np.inf)
    while waiting or running:
        while waiting and len(running) < at_once:
            running[waiting.pop(0)] = 0
        for trial in list(running):
            running[trial] += 1
            used += 1
            seen[trial] = max(seen[trial], curves[trial, running[trial] - 1])
            action = rungs.on_result(SimpleNamespace(trial_id=trial), running[trial] * interval, seen[trial])
            if action == "STOP" or running[trial] == points:
                del running[trial]
    best = curves.max(axis=1)
    return used / curves.size, float(best.max() - best[seen.argmax()])


if __name__ == "__main__":
    raise SystemExit(main())
