"""A run's gauges for Prometheus: threads of Ray Train's controller read the run's files; Ray exports what they find.

No step and no report waits for them, and no gauge for a file system that hangs.
"""

import copy
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pyarrow.fs import FileSelector
from ray.util.metrics import Gauge

from scalablevit.run_files import ATTEMPTS, CHECKPOINTS, MANIFEST, RECORDS, SENT
from scalablevit.tracking.outbox import outbox_of, read_lines
from scalablevit.tracking.records import MetricsRecord
from scalablevit.tracking.sync_progress import load_progress
from scalablevit.training.attempt_events import Event, Lost, StartupTimings, read_attempts
from scalablevit.training.ray_internals import ControllerCallback
from scalablevit.training.storage import open_filesystem

GAUGES = {
    "scalablevit_step": "Optimizer steps done, at the last log point",
    "scalablevit_images_per_second": "Training images per second over all workers, at the last log point",
    "scalablevit_step_seconds": "Mean seconds of an optimizer step, at the last log point",
    "scalablevit_data_wait_ratio": "Part of the time in which workers waited for data, 0 to 1, at the last log point",
    "scalablevit_loss": "Mean training loss since the log point before the last one",
    "scalablevit_validation_metric": "The stage's first validation metric, named by the label metric",
    "scalablevit_report_age_seconds": "Seconds since the workers last reported, or since they were asked for",
    "scalablevit_restarts": "Times that workers were lost or replaced within jobs, since the run began",
    "scalablevit_outbox_age_seconds": "Age of the oldest record that MLflow does not have, in seconds; 0: it has all",
    "scalablevit_checkpoint_age_seconds": "Seconds since the newest checkpoint was written",
}
"""Description of each gauge by its name, before which Ray puts `ray_`.

Gauges only: a counter would begin again with each controller. One whose value is not known, too old, or not finite is
absent.
"""
VALIDATION = "scalablevit_validation_metric"

AGE = "_age_seconds"
"""Ends the names of gauges whose values are known as times, seconds since the epoch, from which the ages go on."""
REPORT_AGE = f"scalablevit_report{AGE}"

REFRESH_S = 5.0
"""Seconds between two refreshes: Ray exports every 10 s, and forgets a gauge that was not set since."""
LIST_S = 30.0
"""Seconds between two listings of checkpoints in run storage."""
STALE_S = 120.0
"""Seconds without a reading after which what it gave is no longer exported."""

Reading = Callable[[], dict[str, float]]
"""Reads one thing, and returns the values of its gauges by name."""


class GaugesCallback(ControllerCallback):
    """Exports a run's gauges from the start of Ray Train's controller, on the driver's node, to its end.

    Args:
        labels: the labels `run` and `stage` of all gauges.
        reader: reads their values.
    """

    def __init__(self, labels: dict[str, str], reader: "GaugeReader") -> None:
        self._labels = labels
        self._reader = reader
        self._ended = False

    def after_controller_start(self, train_run_context: object) -> None:
        """Start the threads; Ray calls this before it asks for workers."""
        threading.Thread(target=self._export, name="gauges", daemon=True).start()

    async def before_controller_shutdown(self) -> None:
        """End the threads: a controller's process may outlive its training."""
        self._ended = True

    def _export(self) -> None:
        reader = copy.deepcopy(self._reader)  # Ray may pickle this object at any time, and whatever it holds
        for reading, pause_s in reader.readings().items():  # apart, so that a file system that hangs holds up no other
            thread = threading.Thread(target=self._repeat, args=(reader, reading, pause_s), name="reader", daemon=True)
            thread.start()
        gauges = {}
        for name, text in GAUGES.items():
            labels = self._labels | ({"metric": reader.metric} if name == VALIDATION else {})
            gauges[name] = Gauge(name, text, tuple(labels)).set_default_tags(labels)
        while not self._ended:
            for name, value in reader.values().items():
                gauges[name].set(value)
            time.sleep(REFRESH_S)

    def _repeat(self, reader: "GaugeReader", reading: Reading, pause_s: float) -> None:
        while not self._ended:
            reader.read(reading)
            time.sleep(pause_s)


class GaugeReader:
    """Reads the values of a run's gauges from its files; those of steps from records that are written from now on.

    Args:
        local: the run's folder on the driver's disk; the outbox in it exists.
        run_folder: the run's folder in run storage, path or address.
        uid: the uid of the run's records.
        metric: name of the validation metric to export.
        global_batch_size: images of an optimizer step.
    """

    def __init__(self, local: Path, run_folder: str, uid: str, metric: str, global_batch_size: int) -> None:
        self.metric = metric
        self._outbox = outbox_of(local)
        self._attempts = local / ATTEMPTS
        self._run_folder = run_folder
        self._uid = uid
        self._global_batch_size = global_batch_size
        self._names = {
            "train/images_per_s": "scalablevit_images_per_second",
            "train/data_wait": "scalablevit_data_wait_ratio",
            "train/loss": "scalablevit_loss",
            metric: VALIDATION,
        }
        self._read: dict[Reading, tuple[float, dict[str, float]]] = {}
        self._steps: dict[str, float] = {}
        self._offset = (self._outbox / RECORDS).stat().st_size
        self._restarts = 0
        self._attempts_offset = 0
        self._last_event: Event | None = None
        self._reported = time.time()

    def readings(self) -> dict[Reading, float]:
        """Return what there is to read, with the seconds to pause between two of them."""
        local = dict.fromkeys((self._read_records, self._read_attempts, self._read_unsent), REFRESH_S)
        return {**local, self._list_checkpoints: LIST_S}

    def read(self, reading: Reading) -> None:
        """Read one of `readings`, which may take as long as its file system does; one that fails changes nothing."""
        with suppress(OSError, ValueError):  # read again the next time
            values = dict(reading())
            self._read[reading] = (time.monotonic(), values)

    def values(self) -> dict[str, float]:
        """Return the finite values that are known, by name of the gauge, without those read long ago; reads no file.

        The age of the last report goes on whatever can be read.
        """
        now, known = time.monotonic(), {REPORT_AGE: self._reported}
        for at, values in list(self._read.values()):
            if now - at <= STALE_S:
                known |= values
        now = time.time()
        ages = {name: max(0.0, now - since) for name, since in known.items() if name.endswith(AGE)}
        return {name: value for name, value in (known | ages).items() if math.isfinite(value)}

    def _read_records(self) -> dict[str, float]:
        for line in read_lines(self._outbox, self._offset):
            self._offset = line.end
            record = line.record
            if not isinstance(record, MetricsRecord) or record.uid != self._uid:
                continue
            self._reported = max(self._reported, record.time_ms / 1000)
            self._steps["scalablevit_step"] = record.step
            for metric, value in record.metrics.items():
                if metric in self._names:
                    self._steps[self._names[metric]] = float(value)
            if rate := float(record.metrics.get("train/images_per_s", 0.0)):
                self._steps["scalablevit_step_seconds"] = self._global_batch_size / rate
        return self._steps

    def _read_attempts(self) -> dict[str, float]:
        events, self._attempts_offset = read_attempts(self._attempts, self._attempts_offset)
        for event in events:
            # workers that leave in time, or whose controller is lost, are not recorded as lost
            replaced = isinstance(event, StartupTimings) and isinstance(self._last_event, StartupTimings)
            self._restarts += replaced or isinstance(event, Lost)
            self._last_event = event
        return {"scalablevit_restarts": self._restarts}

    def _read_unsent(self) -> dict[str, float]:
        sent = load_progress(self._outbox)
        if sent is None and (self._outbox / SENT).exists():
            raise ValueError("how far it was sent cannot be read")
        unsent = (line.record for line in read_lines(self._outbox, sent.offset if sent else 0))
        oldest = next((record.time_ms / 1000 for record in unsent if record is not None), math.inf)
        return {f"scalablevit_outbox{AGE}": oldest}

    def _list_checkpoints(self) -> dict[str, float]:
        filesystem, folder = open_filesystem(self._run_folder)
        files = filesystem.get_file_info(FileSelector(f"{folder}/{CHECKPOINTS}", allow_not_found=True, recursive=True))
        manifests = [file.mtime_ns / 1e9 for file in files if file.base_name == MANIFEST and file.mtime_ns]
        return {f"scalablevit_checkpoint{AGE}": max(manifests)} if manifests else {}
