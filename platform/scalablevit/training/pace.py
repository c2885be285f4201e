"""How often the workers of a training meet through Ray, by their number."""

from dataclasses import dataclass

CALLS_PER_S = 400
"""Most calls a second by which Ray Train's controller asks the workers for their reports, one call each."""
SHORTEST_POLL_S = 0.2
"""Ray's own 2 s would pace the reports of short trainings."""
SHORTEST_MEETING_S = 1.0
"""Seconds between two meetings of a few workers."""
MEETING_S_PER_WORKER = 0.12
"""Seconds between two meetings for each worker: all call one process, one after another, and wait for the last one, for
0.6 ms a worker on two busy cores. With two kinds of meetings that is 1 % of the time."""
LONGEST_REPORT_S = 60.0
"""A training that makes progress must show it at least this often."""
LONGEST_NOTICE_S = 10.0
"""Clouds give about half a minute of notice before they take a machine away, and a checkpoint takes time."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Least seconds between two occurrences."""

    poll_s: float
    """The controller asks all workers for their reports, and takes one from each."""
    report_s: float
    """All workers meet to report; records that come faster wait and are sent together."""
    notice_s: float
    """All workers meet to learn whether a node is about to be taken away."""


def pace_of(workers: int) -> Pace:
    """Return the pace for a number of workers: it grows with them, so that meetings take no larger share of it.

    From 84 workers on the share grows all the same: notices cannot wait longer.
    """
    meeting = max(SHORTEST_MEETING_S, MEETING_S_PER_WORKER * workers)
    poll = max(SHORTEST_POLL_S, workers / CALLS_PER_S)
    return Pace(poll_s=poll, report_s=min(meeting, LONGEST_REPORT_S), notice_s=min(meeting, LONGEST_NOTICE_S))
