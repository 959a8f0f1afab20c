"""Prints progress on standard error, with the seconds since the start."""

from __future__ import annotations

import sys
import time

_START = time.monotonic()


def tell(text: str) -> None:
    print(f"{time.monotonic() - _START:6.0f} s  {text}", file=sys.stderr, flush=True)
