r"""``rejected.csv``: what was not mailed, where a person can see it and ``mailroom replay`` can read it.

One row a recipient or a malformed line: ``time,outcome,reason,line``. The line is what the sender
had read, byte for byte, without its ``\n``. The file holds live tokens: its mode is 0600.

Promises: ``add`` returns when the rows are on the disk (fsync), or leaves the file as it was. It may
be moved away at any time, to be replayed or deleted; the next row begins a new one.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from mailroom.errors import ReplayError, SetAsideError, WireError
from mailroom.wire import Message, decode, encode

FILE_NAME: Final = "rejected.csv"
HEADER: Final = ("time", "outcome", "reason", "line")


class Row(NamedTuple):
    """What was not mailed.

    Attributes:
        outcome: rejected, expired, unsent, unknown (its answer was lost) or malformed.
        reason: why, in one sentence.
        line: what the sender had read.
    """

    outcome: str
    reason: str
    line: bytes

    @classmethod
    def of(cls, message: Message, outcome: str, reason: str) -> Row:
        """The row of a recipient."""
        return cls(outcome, reason, encode([message])[:-1])


class Rejected:
    """The file in one folder, which is made if need be.

    Raises:
        SetAsideError: the folder or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            os.close(self._open())
        except OSError as error:
            raise self._error(error) from error

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows, all or none of them.

        Raises:
            SetAsideError: the file takes no more.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = io.StringIO(newline="")
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for outcome, reason, line in rows:
            writer.writerow([now, outcome, reason, line.decode(errors="surrogateescape")])
        try:
            descriptor = self._open()
            try:
                size = os.fstat(descriptor).st_size
                header = ",".join(HEADER) + "\n" if not size else ""
                rest = memoryview((header + text.getvalue()).encode(errors="surrogateescape"))
                try:
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._error(error) from error

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)

    def _error(self, error: OSError) -> SetAsideError:
        return SetAsideError(
            f"cannot write {str(self.path)!r}, where what is not mailed is set aside: {error.strerror}",
            hint="make room, or let MAILROOM_SES_OUTPUT_PATH name a folder that can be written",
        )


def read(path: Path) -> Iterator[tuple[int, Row, list[Message] | WireError]]:
    """The rows that the file has now, with their numbers and what each can be mailed as.

    Rows that are added meanwhile are not read: a sender that rejects what is replayed adds them.

    Raises:
        ReplayError: the file cannot be read or is none of ours.
    """
    try:
        content = path.read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        raise ReplayError(f"cannot read {str(path)!r}: {error.strerror}") from error
    csv.field_size_limit(max(len(content), csv.field_size_limit()))
    rows = csv.reader(io.StringIO(content, newline=""))
    try:
        if content and tuple(next(rows)) != HEADER:
            raise ReplayError(
                f"{str(path)!r} has not the header {','.join(HEADER)}",
                hint=f"give it a {FILE_NAME} that `mailroom sender` wrote",
            )
        for number, fields in enumerate(rows, start=1):
            if len(fields) != len(HEADER):
                fault = WireError(f"{len(fields)} fields, not {len(HEADER)}")
                yield number, Row("malformed", "", b""), fault
                continue
            row = Row(fields[1], fields[2], fields[3].encode(errors="surrogateescape"))
            try:
                yield number, row, decode(row.line + b"\n")
            except WireError as fault:
                yield number, row, fault
    except csv.Error as error:
        raise ReplayError(f"{str(path)!r} is no CSV: {error}") from error
