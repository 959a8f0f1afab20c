r"""Writes and reads ``rejected.csv``, which holds what was not mailed; ``mailroom replay`` sends it again.

There is one row for each recipient or malformed line: ``time,outcome,reason,line``. The line is what
the sender had read, byte for byte, without its ``\n``. The file holds live tokens: its mode is 0600.

Promises: ``add`` returns when the rows are on the disk (fsync), or else leaves the file as it was. The
file may be moved or deleted at any time; the next row begins a new one.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from mailroom.actions import Action
from mailroom.errors import ReplayError, SetAsideError, WireError
from mailroom.wire import Message, decode, encode_either

FILE_NAME: Final = "rejected.csv"
HEADER: Final = ("time", "outcome", "reason", "line")


class RejectedRow(NamedTuple):
    """A recipient or a line that was not mailed.

    Attributes:
        outcome: rejected, expired, unsent, unknown (its answer was lost) or malformed.
        reason: why, in one sentence.
        line: what the sender had read.
    """

    outcome: str
    reason: str
    line: bytes

    def messages(self, actions: Mapping[str, Action]) -> list[Message]:
        """The messages of its line, of these actions by name.

        Raises:
            WireError: the line cannot be decoded.
        """
        if not self.line:
            raise WireError(self.reason)
        return decode(self.line + b"\n", actions)

    @classmethod
    def of(cls, message: Message, outcome: str, reason: str) -> RejectedRow:
        """The row of a recipient."""
        return cls(outcome, reason, encode_either([message])[:-1])


class Rejected:
    """The file in one folder; the folder is made if it does not exist.

    Raises:
        SetAsideError: the folder or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._opened():
                pass
        except OSError as error:
            raise self._error(error) from error

    def add(self, rows: Iterable[RejectedRow]) -> None:
        """Append rows, all or none of them.

        Raises:
            SetAsideError: the file cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        text = io.StringIO(newline="")
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        for outcome, reason, line in rows:
            writer.writerow([now, outcome, " ".join(reason.split()), line.decode(errors="surrogateescape")])
        try:
            with self._opened() as descriptor:
                size = self._whole_bytes(descriptor)
                header = "" if size else ",".join(HEADER) + "\n"
                rest = memoryview((header + text.getvalue()).encode(errors="surrogateescape"))
                try:
                    if size and os.pread(descriptor, 1, size - 1) != b"\n":
                        os.write(descriptor, b"\n")  # ends a row that was cut off, and saves the next
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                    os.fsync(descriptor)
                    if header:
                        self._keep_name()
                except BaseException:
                    os.ftruncate(descriptor, size)
                    raise
        except OSError as error:
            raise self._error(error) from error

    @staticmethod
    def _whole_bytes(descriptor: int) -> int:
        """The file's size; a header that was cut off is removed."""
        size = os.fstat(descriptor).st_size
        header = (",".join(HEADER) + "\n").encode()
        if 0 < size < len(header) and header.startswith(os.pread(descriptor, size, 0)):
            os.ftruncate(descriptor, 0)
            return 0
        return size

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file's descriptor: mode 0600, and locked against other writers."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            descriptor = os.open(self.path, flags, 0o600)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # It may have been moved away while this waited for the lock.
                if not self.path.exists() or not os.path.samestat(found, self.path.stat()):
                    continue
                os.fchmod(descriptor, 0o600)
                yield descriptor
                return
            finally:
                os.close(descriptor)

    def _keep_name(self) -> None:
        """Sync the folder, so that the file's name is on the disk too."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _error(self, error: OSError) -> SetAsideError:
        return SetAsideError(
            f"cannot write {str(self.path)!r}, the file for what is not mailed: {error.strerror}",
            hint="free disk space, or set MAILROOM_SES_OUTPUT_PATH to a folder that can be written",
        )


def remove_lines(path: Path, matches: Callable[[str], bool]) -> int:
    """Remove the file's lines that match, but for its header; returns how many.

    A writer waits meanwhile, and then goes on in the new file.

    Raises:
        OSError: the file cannot be read or written.
    """
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # As read() takes them: a login may hold another character at which splitlines would split.
        header, *lines = re.findall(r"[^\n]*\n|[^\n]+", file.read().decode(errors="surrogateescape")) or [""]
        kept = [line for line in lines if not matches(line)]
        if len(kept) == len(lines):
            return 0
        new = path.with_name(f"{path.name}.new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as whole:
            whole.write("".join([header, *kept]).encode(errors="surrogateescape"))
            whole.flush()
            os.fsync(whole.fileno())
        new.replace(path)
    return len(lines) - len(kept)


def read(path: Path) -> Iterator[tuple[int, RejectedRow]]:
    """The rows that the file has now, each with its number.

    Rows that are added during the replay are not read: they are replayed mails that failed again.

    Raises:
        ReplayError: the file cannot be read, or is not a ``rejected.csv``.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # waits for a writer
            content = file.read().decode(errors="surrogateescape")
    except OSError as error:
        raise ReplayError(f"cannot read {str(path)!r}: {error.strerror}") from error
    lines = content.split("\n")
    csv.field_size_limit(max(len(content), csv.field_size_limit()))
    if content and lines[0] != ",".join(HEADER):
        raise ReplayError(
            f"{str(path)!r} does not begin with the header {','.join(HEADER)}",
            hint=f"name a {FILE_NAME} that `mailroom sender` wrote",
        )
    # No row holds a line break, so a row that was cut off is one line.
    for number, line in enumerate(filter(None, lines[1:]), start=1):
        try:
            ((_, outcome, reason, sent),) = csv.reader([line], strict=True)
        except (ValueError, csv.Error):
            yield number, RejectedRow("malformed", "not a row of this file", b"")
        else:
            yield number, RejectedRow(outcome, reason, sent.encode(errors="surrogateescape"))
