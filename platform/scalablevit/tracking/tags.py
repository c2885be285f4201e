"""Names of the tags and metrics by which the platform finds, sorts and explains its runs and versions in MLflow."""

import json
from collections.abc import Mapping

UID = "scalablevit.uid"
"""On a run: our run uid. On a model version: the registration's uid. It makes sending twice harmless."""
RUN_UID = "scalablevit.run_uid"
"""On a model version: uid of the run that trained it."""
WEIGHTS_SHA256 = "scalablevit.weights_sha256"
"""On a model version: SHA-256 of `weights.safetensors`, checked by every reader."""
CONFIG_SHA256 = "scalablevit.config_sha256"
"""On a model version: SHA-256 of `config.json`, checked by every reader."""
CODE_DIGEST = "scalablevit.code_digest"
"""On a model version: digest of our package's files that it was trained with."""
USER_CODE = "scalablevit.user_code"
"""On a run or model version: content sum of each package that its recipe imports, by name, as JSON."""
RECIPE_HASH = "scalablevit.recipe_hash"
"""On a run or model version: hash of the resolved recipe."""
DATA_DIGEST = "scalablevit.data_digest"
"""On a run, model version or data set: digest of the data (MLflow's own field keeps 36 characters)."""
PARENT_VERSION = "scalablevit.parent_version"
"""On a model version: `<name>/<version>` of the registered model whose weights training started from."""
INIT_SHA256 = "scalablevit.init_sha256"
"""On a run or model version: SHA-256 of the weights file that training started from."""
METRIC = "scalablevit.metric"
"""On a model version: name, value and step of the evaluation that chose it."""
SEARCH = "scalablevit.search"
"""On a run or model version: name of the run of the search that found its values."""
SEARCH_UID = "scalablevit.search_uid"
"""On a run or model version: our uid of that search's run."""
SEARCH_TRIAL = "scalablevit.search_trial"
"""On a run or model version: number of the trial that had its values."""
PROMOTION = "scalablevit.promotion"
"""On a model version: result of its last comparison with the champion, in words."""
PROMOTION_EVIDENCE = "scalablevit.promotion_evidence"
"""On a model version: metrics, limits and circumstances of that comparison, as JSON."""
PREVIOUS_CHAMPION = "scalablevit.previous_champion"
"""On a version that became champion: number of the version that was champion before; `none` for the first one."""
ROLLED_BACK = "scalablevit.rolled_back"
"""On a version that was champion: when the champion was moved back from it, and to which version."""


def best_metric(metric: str) -> str:
    """Return the name of the metric that holds the value of a run's best evaluation, such as `best/top1`.

    Args:
        metric: name of the metric in evaluations, such as `val/top1`.
    """
    return f"best/{metric.removeprefix('val/')}"


def user_code(sums: Mapping[str, str]) -> dict[str, str]:
    """Return the tag of users' own code; empty where there is no such code.

    Args:
        sums: content sum of each package, by name.
    """
    return {USER_CODE: json.dumps(sums, sort_keys=True)} if sums else {}
