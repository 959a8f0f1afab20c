"""Compares two clocks over a network."""

from __future__ import annotations

from typing import Final

from mailroom.doctor.report import Finding, fault, ok, warning

WARNING_S: Final = 2.0
FAULT_S: Final = 60.0  # AWS refuses signatures that are 300 s old, and tokens may expire after minutes


def compared(
    whose: str, theirs: float, asked_at: float, answered_at: float, *, resolution_s: float = 0.0
) -> Finding:
    """A finding on how far another clock is from this machine's. Times are in seconds since 1970.

    Args:
        whose: the other clock's name in the finding.
        theirs: the other clock's time.
        asked_at: our time before the question.
        answered_at: our time after the answer.
        resolution_s: the other clock's time is rounded down to a multiple of this.
    """
    off_by = theirs + resolution_s / 2 - (asked_at + answered_at) / 2
    uncertain = (answered_at - asked_at + resolution_s) / 2
    certain = abs(off_by) - uncertain
    if certain <= WARNING_S:
        return ok(f"this machine and {whose} agree within {max(abs(off_by), uncertain):.3f} s")
    way = "behind" if off_by > 0 else "ahead of"
    detail = f"this machine's clock is {abs(off_by):.1f} s {way} {whose}'s"
    remedy = "synchronise both clocks by NTP; see `timedatectl` or `chronyc tracking`"
    return fault(detail, remedy) if certain > FAULT_S else warning(detail, remedy)
