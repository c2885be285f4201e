"""Names of the files and folders that runs leave, each written here once."""

RUNS = "runs"
"""Below the platform's root: a folder for each job, stage and search."""
INDEX = "index.html"
"""In it: a page over all of them."""
NOTIFICATIONS = "notifications"
"""Below the platform's root: an outbox for each channel by which people are notified."""

# in the folder of a stage's run
IDENTITY = "run.json"
"""In run storage: the run's `uid` in tracking, and when it was `created`."""
RECIPE = "recipe.yaml"
"""The resolved recipe of the stage; a trial has its own."""
ENVIRONMENT = "environment.json"
DATA = "data"
LISTINGS = f"{DATA}/listings.json"
"""The SHA-256 of each split's listing, and of what it is one."""
STATISTICS = "statistics.json"
"""What the data holds."""
CPU_LINEAR = "cpu_linear.txt"
"""In run storage: the library that computes the linear layers on a CPU, as the run began."""
START_NOTE = "start.txt"
"""What the last attempt started from: a checkpoint, initial weights or random ones."""
ATTEMPTS = "attempts.jsonl"
BAD_SAMPLES = "bad_samples.txt"
"""The undecodable training files that were met, a line each: path, tab, reason."""
METRICS = "metrics.jsonl"
RESULTS = "results.csv"
RESULT = "result.json"
"""The run has finished; a trial has its own."""
REPORT = "report.html"
FOR_MLFLOW = "for_mlflow"
"""Folder of what MLflow gets in place of a file of the same name: a report without images of the data."""

# what keeps jobs apart, also in the folders of jobs and searches
STATUS = "status.json"
LEASE = "lease.json"
LEASE_LOCK = "lease.lock"
LEASE_WATCHED = "lease_watched.json"
"""On the driver's disk: a claim of another machine that was watched for long enough and not renewed."""

# checkpoints, and steps that were kept for replay
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
NONFINITE = "nonfinite"
"""Folder of steps whose loss or gradient was not finite, a folder each."""
STEP = "step.json"
"""In the folder of such a step: what its random numbers are functions of."""

# the exported model; a registered version has the same two files
MODEL = "model"
WEIGHTS_NAME = "weights.safetensors"
CONFIG_NAME = "config.json"
WEIGHTS = f"{MODEL}/{WEIGHTS_NAME}"
CONFIG = f"{MODEL}/{CONFIG_NAME}"

# plots and error analysis
PLOTS = "plots"
CURVES = f"{PLOTS}/curves.png"
TRAINING_BATCH = f"{PLOTS}/training_batch.png"
VALIDATION = f"{PLOTS}/validation.png"
ERROR_ANALYSIS = "examination"
"""Folder of `FINDINGS` and its pictures; runs of earlier versions have it, so the name stays."""
FINDINGS = "findings.json"

# in the folder of a job
JOB = "job.json"
"""`recipe` and `stages`, of each its `name`, the name of its `run` (a folder next to the job's), its folder in run
`storage` if that is another one, and what it is `registered` as, if it is."""

RESOLVED = "resolved_recipe.yaml"
"""The recipe of all stages, every key with its value."""

# in the folder of a search
SPACE = "space.yaml"
BASE_RECIPE = "base_recipe.yaml"
BEST_RECIPE = "best_recipe.yaml"
BEST_TRIAL = "best_trial.json"
"""Which trial was the best when the search ended, and under which budget."""
TRIALS = "trials"
"""A folder for each trial."""
UNREPORTED = "unreported.json"
"""In the folder of a trial of several workers: its records since its last evaluation."""
TRIAL_LIST = "trials.json"
"""The values of all trials, written before they start."""
TRIAL_TABLE = "trials.csv"
"""What became of the trials; the search has ended."""

# records on their way to MLflow, on the driver's disk
OUTBOX, FORMER_OUTBOX = "outbox", "spool"
"""Runs of releases before 0.2 have the former one."""
RECORDS = "records.jsonl"
SENT = "shipped.json"
REFUSED = "refused.jsonl"
SYNC_LOCK = "shipper.lock"
"""Its name is that of earlier releases, so that two of them never send one outbox at once."""
CALLBACK_LOG = "callback.log"
