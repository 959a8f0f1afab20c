"""Saves a provider's answers that report trouble as files, to help find the cause.

``ses_<UTC time>_<action>.http`` holds the status line, the headers and the body as received. A body of more
than 1 MiB is cut, with a note. A limited number of files and bytes is kept; the oldest are deleted, which is
logged. When the disk is full the file is not written, and the mail is not affected.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from http.client import responses as reasons
from pathlib import Path
from typing import Final

from mailroom.logs import EventLogger
from mailroom.outage import Outage
from mailroom.transports.redaction import redacted

MAX_FILES: Final = 1000
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_BODY_BYTES: Final = 1024 * 1024

log = EventLogger("answers")


class SavedAnswers:
    """The files in one folder, which is made with the first file.

    Args:
        folder: the folder.
        prefix: of the files' names.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix
        self._one_at_a_time = threading.Lock()
        self._not_saved = Outage(log, "not_saved", "still_not_saved", "saved_again")

    def save(
        self,
        action: str,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Iterable[str | None] = (),
    ) -> None:
        """Save one answer, with every secret replaced.

        Args:
            action: the action's name.
            status: the HTTP status.
            headers: the headers.
            body: the body.
            secrets: texts that must not be in the file.
        """
        lines = [f"HTTP/1.1 {status} {reasons.get(status, '')}".rstrip()]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""])
        # Latin-1 maps bytes to characters one to one.
        text = head.encode(errors="replace").decode("latin-1") + body[: 2 * MAX_BODY_BYTES].decode("latin-1")
        content = redacted(text, secrets)
        if len(body) > MAX_BODY_BYTES:
            content = f"{content[: len(head) + MAX_BODY_BYTES]}\n[cut here: the body had {len(body)} bytes]\n"
        with self._one_at_a_time:
            self._write(action, content)

    def _write(self, action: str, content: str) -> None:
        time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{self._prefix}_{time}_{action}.http"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content.encode("latin-1"))
            self._make_room()
        except OSError as error:
            self._not_saved.failed(error.strerror or type(error).__name__)
        else:
            self._not_saved.ended()

    def _make_room(self) -> None:
        files = [(path, path.stat().st_size) for path in sorted(self._folder.glob(f"{self._prefix}_*.http"))]
        total, gone = sum(size for _, size in files), 0
        for path, size in files[:-1]:
            if len(files) - gone <= MAX_FILES and total <= MAX_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= size
            gone += 1
        if gone:
            log.warning("removed", files=gone, kept=len(files) - gone, folder=self._folder)
