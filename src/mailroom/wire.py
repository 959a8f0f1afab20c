r"""Encodes and decodes the line: a batch of messages as text, for a pipe between two programs.

A batch is one line in UTF-8, ended by ``\n``: ``action,email,username,secret,code`` for each message,
separated by commas. The field ``secret`` holds the signed token. A field with ``,`` or ``"`` is quoted
as in RFC 4180. No field holds a control character, so a line break always ends a batch, and the content
of one field is never read as another field.

The encoder refuses what this format cannot hold. The decoder accepts exactly what the encoder writes.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from mailroom.actions import Action
from mailroom.errors import WireError
from mailroom.tokens import TOKEN_CHARACTERS

FIELDS: Final = ("action", "email", "username", "secret", "code")
MAX_MESSAGES: Final = 10_000
CODE_DIGITS: Final = 5
NO_DATA: Final[Mapping[str, str]] = {}

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_NEEDS_CARE: Final = re.compile('[,"\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_TOKEN: Final = re.compile(f"[A-Za-z0-9_-]{{{TOKEN_CHARACTERS}}}")
_CODE: Final = re.compile(f"[0-9]{{{CODE_DIGITS}}}")
_DIGITS: Final = string.digits.encode()
_TOKEN_ALPHABET: Final = string.ascii_letters.encode() + _DIGITS + b"_-"
# Possessive quantifiers: without backtracking the time is linear.
_FIELD: Final = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^",]*+))(,|\Z)')


class Message(NamedTuple):
    """One mail to one recipient.

    Attributes:
        action: its action.
        email: the address.
        username: the recipient's login; it may be empty.
        token: what the link in the mail carries (86 characters); the line calls it ``secret``.
        code: five digits.
        locale: the language of the mail; empty for the templates' own.
        data: the action's own fields.
        expires_in_s: the token's lifetime; None for the action's.
    """

    action: Action
    email: str
    username: str
    token: str
    code: str
    locale: str = ""
    data: Mapping[str, str] = NO_DATA
    expires_in_s: int | None = None

    @property
    def fits_csv(self) -> bool:
        """Whether five fields can hold it."""
        return bool(self.username) and not self.locale and not self.data and self.expires_in_s is None

    def __hash__(self) -> int:
        return hash(self[:6])  # data has no hash

    def __repr__(self) -> str:
        return f"Message(action={self.action.name!r}, …)"  # no address, token or code in a log


def encode_all(
    actions: Sequence[Action],
    emails: Sequence[str],
    usernames: Sequence[str],
    tokens: Sequence[str],
    codes: Sequence[str],
) -> list[str]:
    """The text of each message's five fields, for messages that are given as columns.

    Raises:
        WireError: a field is empty, or holds a control character or half a surrogate pair. The text names
            the field and never shows its value.
    """
    emails, usernames = _quoted("email", emails), _quoted("username", usernames)
    if not _all_of(tokens, TOKEN_CHARACTERS, _TOKEN_ALPHABET):
        raise WireError("secret: not a token")
    if not _all_of(codes, CODE_DIGITS, _DIGITS):
        raise WireError("code: not five digits")
    return [
        f"{action.number},{email},{username},{token},{code}"
        for action, email, username, token, code in zip(
            actions, emails, usernames, tokens, codes, strict=True
        )
    ]


def join_line(encoded: Iterable[str]) -> bytes:
    """The line of messages that ``encode_all`` encoded."""
    return (",".join(encoded) + "\n").encode()


def encode(batch: Sequence[Message]) -> bytes:
    """A batch as its line.

    Raises:
        WireError: the batch is empty or has more than ``MAX_MESSAGES``, or ``encode_all`` refuses it.
    """
    if not batch:
        raise WireError("a line has at least one message")
    if len(batch) > MAX_MESSAGES:
        raise WireError(f"a line has at most {MAX_MESSAGES} messages")
    for message in batch:
        if message.locale or message.data or message.expires_in_s is not None:
            raise WireError("locale, data and expires_in_s: five fields do not hold them")
    return join_line(encode_all(*list(zip(*batch, strict=True))[: len(FIELDS)]))


def decode(line: bytes, actions: Mapping[str, Action]) -> list[Message]:
    r"""A line (with its ``\n``) as its batch.

    Args:
        line: the line.
        actions: those that it may hold, by name.

    Raises:
        WireError: the encoder does not write such a line; the text gives the column, counted in
            characters from 1, and the field.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"byte {error.start + 1}: not UTF-8") from None
    if not text.endswith("\n"):
        raise WireError(f"column {len(text) + 1}: the line is cut off")
    text = text[:-1]
    if control := _CONTROL.search(text):
        raise WireError(f"column {control.start() + 1}: a control character")
    fields = _split(text)
    if len(fields) % len(FIELDS):
        raise WireError(f"column {len(text) + 1}: {len(fields)} fields, not a multiple of {len(FIELDS)}")
    numbered = {str(action.number): action for action in actions.values()}
    return [_read(fields[at : at + len(FIELDS)], numbered) for at in range(0, len(fields), len(FIELDS))]


def _all_of(texts: Sequence[str], length: int, alphabet: bytes) -> bool:
    """Whether each text has this length and consists of these characters."""
    joined = "".join(texts)
    return (
        set(map(len, texts)) <= {length}
        and joined.isascii()
        and not joined.encode().translate(None, delete=alphabet)
    )


def _quoted(name: str, values: Sequence[str]) -> Sequence[str]:
    """The values of a column, quoted where necessary."""
    if all(values) and not _NEEDS_CARE.search("".join(values)):
        return values
    return [_careful(name, value) if not value or _NEEDS_CARE.search(value) else value for value in values]


def _careful(name: str, value: str) -> str:
    if not value:
        raise WireError(f"{name}: empty")
    if _CONTROL.search(value):
        raise WireError(f"{name}: holds a control character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WireError(f"{name}: not valid Unicode") from None
    return '"' + value.replace('"', '""') + '"'


def _split(text: str) -> list[tuple[int, str]]:
    """The fields with their columns."""
    fields: list[tuple[int, str]] = []
    at = 0
    while True:
        found = _FIELD.match(text, at)
        if not found:
            raise WireError(f"column {at + 1}: a field is quoted wrongly")
        quoted, plain, end = found.groups()
        if quoted is not None and not re.search('[,"]', quoted):
            raise WireError(f"column {at + 1}: a field is quoted without need")
        if len(fields) == MAX_MESSAGES * len(FIELDS):
            raise WireError(f"column {at + 1}: more than {MAX_MESSAGES} messages")
        fields.append((at + 1, plain if quoted is None else quoted.replace('""', '"')))
        at = found.end()
        if not end:
            return fields


def _read(fields: list[tuple[int, str]], numbered: Mapping[str, Action]) -> Message:
    (at_action, number), (at_email, email), (at_name, username), (at_token, token), (at_code, code) = fields
    action = numbered.get(number)
    if action is None:
        raise WireError(f"column {at_action}: action: not the number of an action")
    if not email:
        raise WireError(f"column {at_email}: email: empty")
    if not username:
        raise WireError(f"column {at_name}: username: empty")
    if not _TOKEN.fullmatch(token):
        raise WireError(f"column {at_token}: secret: not a token")
    if not _CODE.fullmatch(code):
        raise WireError(f"column {at_code}: code: not five digits")
    return Message(action, email, username, token, code)
