"""The commands by name, and the module of each; none of them is imported here."""

from typing import NamedTuple


class Verb(NamedTuple):
    """A command."""

    module: str
    """Module with `EPILOG` (text after the help), `add_arguments(parser)`, and `run(options)`, which returns the exit
    code."""
    description: str
    has_verbs: bool = False
    """Whether its first argument is a verb of its own."""


VERBS = {
    "full": Verb(
        "scalablevit.cli.train",
        "Run a recipe's search, if it names one, and all its stages: pretrain, fine-tune, evaluate, register.",
    ),
    "pretrain": Verb(
        "scalablevit.cli.train",
        "Run the classification stages of a recipe: pretraining or fine-tuning.",
    ),
    "segment": Verb(
        "scalablevit.cli.train",
        "Run the segmentation stage of a recipe (and the stage whose weights it starts from, if that has not "
        "finished).",
    ),
    "detect": Verb(
        "scalablevit.cli.train",
        "Run the detection stage of a recipe (and the stage whose weights it starts from, if that has not finished).",
    ),
    "tune": Verb(
        "scalablevit.cli.tune",
        "Search hyper-parameters with Ray Tune, train the best ones at full length, and register the model.",
    ),
    "evaluate": Verb("scalablevit.cli.evaluate", "Evaluate a registered model or a finished run on Ray workers."),
    "predict": Verb(
        "scalablevit.cli.predict",
        "Predict images with a registered model or a finished run: a folder, one image, or a list.",
    ),
    "promote": Verb(
        "scalablevit.cli.promote", "Make a candidate the champion of its registered model if it passes the gate."
    ),
    "export": Verb("scalablevit.cli.export", "Export a model to ONNX and torch.export, and compare the files with it."),
    "runs": Verb("scalablevit.cli.runs", "List, show and stop runs.", has_verbs=True),
    "check-data": Verb("scalablevit.cli.check_data", "Name every bad sample of a recipe's data, without training."),
    "pack": Verb("scalablevit.cli.pack", "Pack an image folder into tar shards."),
    "plan": Verb(
        "scalablevit.cli.plan",
        "Predict what a training takes: hours, images/s, decode cores, memory, checkpoint traffic and cost.",
    ),
    "doctor": Verb(
        "scalablevit.cli.doctor",
        "Check what a training needs of this machine, the cluster, storage and MLflow, and say what to do.",
    ),
    "replay": Verb(
        "scalablevit.cli.replay", "Repeat a captured training step and print the first tensors that are not finite."
    ),
    "report": Verb("scalablevit.cli.report", "Write the report.html of a job, a stage or a search again."),
    "recipe": Verb(
        "scalablevit.cli.recipe",
        "Write a first recipe, list the shipped ones, print their schema, or rewrite files in the newest keys.",
        has_verbs=True,
    ),
    "sync": Verb("scalablevit.cli.sync", "Send to MLflow what outages and killed jobs left in the runs' outboxes."),
    "analyse": Verb(
        "scalablevit.cli.analyse",
        "The paper's analysis: feature maps, receptive fields, the ablation of its attention, and its table of costs.",
        has_verbs=True,
    ),
    "completion": Verb("scalablevit.cli.completion", "Print the completion script for bash, zsh or fish."),
}
"""In the order of --help. All but `completion` have a script in pipelines/, with the same description."""
