"""What a fault was and when: the evidence by which duplicates are explained."""

from __future__ import annotations

from typing import NamedTuple


class Window(NamedTuple):
    """A fault that took some time.

    Attributes:
        kind: its name in the report.
        reach: what it reached: ``database``, ``answers`` (SES's to a worker), ``worker`` (stood still),
            ``provider``, or nothing.
        workers: the workers that it reached; empty for all.
        start: in seconds since the epoch.
        end: when everything worked again.
    """

    kind: str
    reach: str
    workers: tuple[str, ...]
    start: float
    end: float

    def covers(self, reach: str, worker: str, start: float, end: float) -> bool:
        """Whether it reached this worker's part at any time between two moments."""
        return (
            self.reach == reach
            and (not self.workers or worker in self.workers)
            and self.start <= end
            and start <= self.end
        )
