"""Lists, adds and removes suppressed addresses, which get no mail; reads and writes them as CSV.

Promises: a file with faults is imported but for the rows at fault, which are reported with their numbers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any, Final, NamedTuple

import psycopg

from mailroom.database.sync import one, rows
from mailroom.errors import MailroomError
from mailroom.operations.dead import operator
from mailroom.operations.mail_state import mask, plain, utc

PAGE: Final = 1000
NEWEST: Final = (datetime.max.replace(tzinfo=UTC), b"")
MAX_ADDRESS: Final = 254
MAX_REASON: Final = 200
ADDRESS: Final = re.compile(r'(?:"[^"@]+"|[^\s@<>,;"]+)@[^\s@<>,;"]+')
FIELDS: Final = ("address", "reason", "source", "at")

LIST: Final = "SELECT hash, address, reason, source, at FROM mailroom.list_suppressions(%s, %s, %s)"
SHOW: Final = (
    "SELECT hash, address, reason, source, at, kind, type, subtype, status, diagnostic, token"
    " FROM mailroom.suppression_of(%s)"
)
SUPPRESS: Final = "SELECT mailroom.suppress(%s, %s, %s)"
UNSUPPRESS: Final = "SELECT mailroom.unsuppress(%s)"


class NotSuppressed(MailroomError):
    """An address is not suppressed."""

    exit_code = 65


class InvalidSuppression(MailroomError):
    """An address cannot be suppressed, or the reason is missing."""

    exit_code = 65


@dataclass(frozen=True, slots=True)
class Suppression:
    """A suppressed address; the address is None if it was forgotten."""

    hash: bytes
    address: str | None
    reason: str
    source: str
    at: datetime

    @property
    def shown(self) -> str:
        """The address, masked."""
        return (
            plain(mask(self.address, self.address)) if self.address else f"(forgotten) {self.hash.hex()[:8]}"
        )

    def cells(self) -> tuple[str, ...]:
        """The cells of a table's row."""
        return self.shown, plain(mask(self.reason)), plain(self.source), utc(self.at)

    def as_dict(self) -> dict[str, Any]:
        """The suppression for JSON; the address is masked."""
        return {
            "address": self.address and self.shown,
            "hash": self.hash.hex(),
            "reason": plain(mask(self.reason)),
            "source": plain(self.source),
            "at": self.at,
        }


@dataclass(frozen=True, slots=True)
class ShownSuppression(Suppression):
    """A suppression with what the event says that suppressed the address; None each if none did."""

    kind: str | None
    type: str | None
    subtype: str | None
    status: str | None
    diagnostic: str | None
    token: int | None

    @property
    def said(self) -> str:
        """What the event says, in the provider's words."""
        words = (self.type, self.subtype, self.status, self.diagnostic)
        return plain(mask(", ".join(filter(None, words)), self.address or ""))

    def text(self) -> str:
        """The suppression as lines of text."""
        lines = [
            f"{self.shown} gets no mail since {utc(self.at)}: {plain(mask(self.reason))}",
            f"  by {plain(self.source) or 'nobody that is known'}",
        ]
        if self.said:
            lines.append(f"  {self.said}")
        if self.token is not None:
            lines.append(f"  it was token {self.token}; `mailroom why {self.token}` tells more")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """As in the list, with the event."""
        return Suppression.as_dict(self) | {"event": self.kind, "said": self.said, "token": self.token}


class Imported(NamedTuple):
    """The result of an import: how many are new, how many were suppressed already, and the faults."""

    added: int
    known: int
    faults: list[str]


def newest(
    connection: psycopg.Connection, limit: int, before: tuple[datetime, bytes] = NEWEST
) -> list[Suppression]:
    """The newest suppressions, newest first.

    Raises:
        DatabaseError: the schema or a privilege is missing.
        DatabaseUnavailable: the connection was lost.
    """
    return rows(connection, Suppression, LIST, [*before, limit])


def all_suppressions(connection: psycopg.Connection) -> Iterator[Suppression]:
    """All suppressions, newest first.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``newest`` does.
    """
    before = NEWEST
    while page := newest(connection, PAGE, before):
        yield from page
        before = (page[-1].at, page[-1].hash)


def show(connection: psycopg.Connection, address: str) -> ShownSuppression:
    """The suppression of an address, in any spelling.

    Raises:
        NotSuppressed: it is not suppressed.
        DatabaseError, DatabaseUnavailable: as ``newest`` does.
    """
    if found := rows(connection, ShownSuppression, SHOW, [address]):
        return found[0]
    raise _not_suppressed(address)


def add(connection: psycopg.Connection, address: str, reason: str) -> bool:
    """Suppress an address; False if it is suppressed already, which changes nothing.

    Raises:
        InvalidSuppression: it is not an address, or there is no reason.
        DatabaseError, DatabaseUnavailable: as ``newest`` does.
    """
    if fault := _fault(address, reason):
        raise InvalidSuppression(fault, hint="give an address, and a --reason of at most 200 characters")
    done: bool = one(connection, SUPPRESS, [address, reason, operator()])[0]
    return done


def remove(connection: psycopg.Connection, address: str) -> None:
    """Let an address get mail again, in all its spellings.

    Raises:
        NotSuppressed: it was not suppressed.
        DatabaseError, DatabaseUnavailable: as ``newest`` does.
    """
    if not one(connection, UNSUPPRESS, [address])[0]:
        raise _not_suppressed(address)


def import_csv(connection: psycopg.Connection, lines: Iterable[str], reason: str) -> Imported:
    """Suppress the addresses of a CSV file, whose first line names its columns.

    Args:
        connection: in autocommit mode.
        lines: the file's lines.
        reason: of the rows that have none.

    Raises:
        InvalidSuppression: the file has no column ``address``.
        DatabaseError, DatabaseUnavailable: as ``newest`` does.
    """
    reader = csv.reader(lines)
    header = [name.strip().lower().removeprefix("\ufeff") for name in next(reader, [])]
    if "address" not in header:
        raise InvalidSuppression(
            "the file has no column address", hint="begin it with the line address,reason"
        )
    added = known = 0
    faults = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            faults.append(f"line {reader.line_num}: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        row = {name: cell.strip().replace("\0", "") for name, cell in zip(header, cells, strict=False)}
        address, why = row.get("address", ""), row.get("reason", "") or reason
        if fault := _fault(address, why):
            faults.append(f"line {reader.line_num}: {fault}")
        elif one(connection, SUPPRESS, [address, why, operator()])[0]:
            added += 1
        else:
            known += 1
    return Imported(added, known, faults)


def export_csv(connection: psycopg.Connection, file: IO[str]) -> tuple[int, int]:
    """Write all suppressions that have an address; returns how many, and how many were forgotten.

    Raises:
        DatabaseError, DatabaseUnavailable: as ``newest`` does.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FIELDS)
    written = forgotten = 0
    for each in all_suppressions(connection):
        if each.address is None:
            forgotten += 1
        else:
            writer.writerow([each.address, each.reason, each.source, each.at.astimezone(UTC).isoformat()])
            written += 1
    return written, forgotten


def _fault(address: str, reason: str) -> str:
    """Why an address cannot be suppressed; empty if it can."""
    if not ADDRESS.fullmatch(address):
        return f"{plain(mask(address))[:80]!r} is not an address"
    if len(address) > MAX_ADDRESS or plain(address) != address.strip():
        return "the address has more than 254 characters, or a control character"
    if not reason.strip():
        return "there is no reason"
    if len(reason) > MAX_REASON:
        return f"the reason has more than {MAX_REASON} characters"
    return ""


def _not_suppressed(address: str) -> NotSuppressed:
    return NotSuppressed(
        f"{plain(mask(address, address))!r} is not suppressed", hint="`mailroom suppressions list` lists all"
    )
