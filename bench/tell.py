"""Progress goes to standard error: standard output is the result."""

from __future__ import annotations

import sys


def tell(text: str) -> None:
    print(text, file=sys.stderr)
