"""Two clocks, compared over a network."""

from __future__ import annotations

from typing import Final

from mailroom.doctor.report import Finding, fault, ok, warning

WARNING_S: Final = 2.0
FAULT_S: Final = 60.0  # AWS refuses what was signed 300 s ago, and tokens live for 900


def compared(
    whose: str, theirs: float, asked_at: float, answered_at: float, *, resolution_s: float = 0.0
) -> Finding:
    """How far a clock is from this machine's, in seconds since 1970.

    Args:
        whose: what the detail calls it.
        theirs: its time.
        asked_at: ours before the question.
        answered_at: ours after the answer; its time was between the two.
        resolution_s: its time was cut to a multiple of this.
    """
    off_by = theirs + resolution_s / 2 - (asked_at + answered_at) / 2
    uncertain = (answered_at - asked_at + resolution_s) / 2
    certain = abs(off_by) - uncertain
    if certain <= WARNING_S:
        return ok(f"this machine and {whose} agree within {max(abs(off_by), uncertain):.3f} s")
    way = "behind" if off_by > 0 else "ahead of"
    detail = f"this machine's clock is {abs(off_by):.1f} s {way} {whose}'s"
    remedy = "let both keep time by NTP: see `timedatectl` or `chronyc tracking`"
    return fault(detail, remedy) if certain > FAULT_S else warning(detail, remedy)
