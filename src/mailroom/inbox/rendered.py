"""What a mail shows, however it came."""

from __future__ import annotations

from typing import NamedTuple


class Rendered(NamedTuple):
    """What a mail shows; a part that it does not have is empty."""

    subject: str
    text: str
    html: str
