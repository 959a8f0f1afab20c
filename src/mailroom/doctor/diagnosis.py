"""The doctor: checks everything that Mailroom depends on, and reports faults with a remedy.

``diagnose`` checks the database's side, the sending side and SES's events at the same time. The checks are
listed in ``database.CHECKS``, ``ses.CHECKS``, ``smtp.CHECKS`` and ``events.CHECKS``.

Promises: nothing is changed and no mail is sent. A check that fails does not hide another. All checks
together take at most ``PATIENCE_S``, even if a server does not answer. No finding has a password, a key or a
user's address.

Does not promise that mail arrives: no recipient is contacted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from threading import Thread
from typing import Final

from mailroom.doctor.database import examine as examine_database
from mailroom.doctor.environment import examine as examine_environment
from mailroom.doctor.events import examine as examine_events
from mailroom.doctor.report import Report
from mailroom.doctor.sending import examine as examine_sending

PATIENCE_S: Final = 13.0
PARTS: Final = {"database": examine_database, "sending": examine_sending, "events": examine_events}


def diagnose(
    environment: Mapping[str, str], only: str | None = None, patience_s: float = PATIENCE_S
) -> Report:
    """The findings on everything, or on one of ``PARTS``.

    Args:
        environment: Mailroom's variables. botocore reads those of AWS itself.
        only: the name of a part.
        patience_s: how many seconds the checks have; a check that is not done then is a fault.
    """
    deadline = time.monotonic() + patience_s
    examined = []
    for name, examine in PARTS.items():
        if only in (None, name):
            report = Report()
            # A daemon thread, which need not end: resolving a host name has no time limit.
            look = partial(examine, environment, report)
            thread = Thread(target=report.attempt, args=[name, look], daemon=True)
            thread.start()
            examined.append((report, thread))
    whole = Report()
    examine_environment(environment, whole)
    for report, thread in examined:
        thread.join(max(deadline - time.monotonic(), 0))
        whole.findings += report.ended(patience_s) if thread.is_alive() else report.findings
    return whole
