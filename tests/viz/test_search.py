"""Pictures of a search, of whatever its values and its metric are called."""

from scalablevit.config.space import Space
from scalablevit.tuning.study import as_study
from scalablevit.tuning.trials import Trial
from scalablevit.viz.search import save_plots


def test_names_are_no_mathematics(tmp_path):
    """To matplotlib what stands between two `$` is, and `$^$` is wrong."""
    choices = ["$^$", r"a$\frac$b", ["$^$", 1]]
    space = Space.model_validate({
        "metric": "val/iou/$^$", "budget": {"trials": 3},
        "parameters": {"model.init": {"choice": choices}, "optimizer.lr": {"loguniform": (1e-4, 1e-2)}},
    })  # fmt: skip
    trials = [Trial(number, {"model.init": choice, "optimizer.lr": 1e-3 * (number + 1)}, "finished",
                    curve={1: 0.1 * number}) for number, choice in enumerate(choices)]  # fmt: skip
    curves = {trial.number: trial.curve for trial in trials}
    files = save_plots(as_study(trials, space), curves, [2, 1, 0], space.metric, tmp_path / "plots")
    assert [file.stem for file in files] == ["curves", "history", "parallel_coordinates", "importance"]
    assert all(file.stat().st_size > 1000 for file in files)
