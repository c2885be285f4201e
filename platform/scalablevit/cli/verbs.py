"""The commands by their names, and where each is found; nothing of them is imported here."""

from typing import NamedTuple


class Verb(NamedTuple):
    """A command."""

    module: str
    """It has `EPILOG` for its help, `add_arguments(parser)`, and `run(options)`, which returns the exit code."""
    description: str
    has_verbs: bool = False
    """Whether its first argument is a verb of its own."""


_JOBS = "scalablevit.jobs"

VERBS = {
    "full": Verb(
        f"{_JOBS}.train",
        "Run all stages of a recipe in order: pretrain a backbone, fine-tune it, evaluate and register every model.",
    ),
    "pretrain": Verb(
        f"{_JOBS}.train", "Run the classification stage of a recipe: pretrain a backbone, evaluate and register it."
    ),
    "segment": Verb(
        f"{_JOBS}.train",
        "Run the segmentation stage of a recipe (and the stage whose weights it starts from, if that has not "
        "finished).",
    ),
    "detect": Verb(
        f"{_JOBS}.train",
        "Run the detection stage of a recipe (and the stage whose weights it starts from, if that has not finished).",
    ),
    "tune": Verb(f"{_JOBS}.tune", "Search a recipe's values by Ray Tune, train the best in full, and register it."),
    "evaluate": Verb(f"{_JOBS}.evaluate", "Evaluate a registered model, on the workers of the Ray cluster."),
    "predict": Verb(f"{_JOBS}.predict", "Answer a folder of images with a registered model."),
    "promote": Verb(f"{_JOBS}.promote", "Make a candidate the champion of its registered model if it passes the gate."),
    "export": Verb(f"{_JOBS}.export", "Write a model as ONNX and torch.export archives, checked."),
    "runs": Verb(f"{_JOBS}.runs", "List, show and stop runs.", has_verbs=True),
    "check-data": Verb(f"{_JOBS}.check_data", "Name every bad sample of a recipe's data, without training."),
    "pack": Verb(f"{_JOBS}.pack", "Pack an image folder into tar shards."),
    "plan": Verb(
        f"{_JOBS}.plan",
        "Predict what a training takes: hours, images/s, decode cores, memory, checkpoint traffic and cost.",
    ),
    "replay": Verb(f"{_JOBS}.replay", "Take a captured step again, to see where it stops being finite."),
    "report": Verb("scalablevit.cli.report", "Make the report of a job, a stage or a search again."),
    "recipe": Verb(
        f"{_JOBS}.recipe",
        "List the shipped recipes and search spaces, or rewrite files in the current version's keys.",
        has_verbs=True,
    ),
    "sync": Verb(f"{_JOBS}.sync", "Send to MLflow what outages and killed jobs left in the runs' spools."),
    "analyse": Verb(
        f"{_JOBS}.analyse",
        "The paper's analysis: feature maps, receptive fields, the ablation of its attention, and its table of costs.",
        has_verbs=True,
    ),
    "completion": Verb("scalablevit.cli.completion", "Print what makes a shell complete this command."),
}
"""In the order of --help. All but `completion` have a script in pipelines/, with the same description."""
