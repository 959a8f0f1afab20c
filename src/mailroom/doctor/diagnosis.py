"""The doctor: looks at everything that Mailroom stands on, and tells what is wrong and what to do.

``diagnose`` examines the database's side and the sending side at the same time, each as a list of
checks that reads like a table of contents (``database.CHECKS``, ``ses.CHECKS``, ``smtp.CHECKS``).

Promises: nothing is changed and no mail is sent; a check that fails hides no other; the whole takes
``PATIENCE_S`` at most, whoever does not answer; no finding holds a password, a key or a user's address.

Does not promise that mail arrives: it asks no recipient.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from threading import Thread
from typing import Final

from mailroom.doctor.database import examine as examine_database
from mailroom.doctor.environment import examine as examine_environment
from mailroom.doctor.report import Finding, Report, State
from mailroom.doctor.sending import examine as examine_sending

PATIENCE_S: Final = 13.0
PARTS: Final = {"database": examine_database, "sending": examine_sending}

__all__ = ["PARTS", "Finding", "Report", "State", "diagnose"]


def diagnose(
    environment: Mapping[str, str], only: str | None = None, patience_s: float = PATIENCE_S
) -> Report:
    """Examine everything, or only one of ``PARTS``.

    Args:
        environment: Mailroom's variables; AWS's are read by botocore, from where it reads them.
        only: the name of a part.
        patience_s: after so many seconds, whoever has not answered yet is told as a fault.
    """
    deadline = time.monotonic() + patience_s
    examined = []
    for name, examine in PARTS.items():
        if only in (None, name):
            report = Report()
            # A thread, and not one to wait for at the end: nothing else bounds a name's resolution.
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
