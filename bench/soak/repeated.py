"""Does something at intervals beside a soak."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def repeated(what: Callable[[], object], every_s: float) -> Iterator[None]:
    """Do something again and again until the context is left, which raises the error that ended it."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every_s):
            what()

    with ThreadPoolExecutor(1) as thread:
        repeating = thread.submit(repeat)
        try:
            yield
        finally:
            over.set()
    repeating.result()
