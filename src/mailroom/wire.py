r"""Encodes and decodes the line: a batch of messages as text, for a pipe between two programs.

A batch is one line in UTF-8, ended by ``\n``, in one of two formats. No field holds a control character, so a
line break always ends a batch, and the content of one field is never read as another field.

CSV is ``action,email,username,secret,code`` for each message, separated by commas. The field ``secret``
holds the signed token. A field with ``,`` or ``"`` is quoted as in RFC 4180. Five fields hold no locale, no
data and no lifetime, and need a username.

JSON is ``{"mails": [{"action": 5, "email": …, "login": …, "token": …, "code": …, "locale": …, "data": {…},
"expires_in_s": …}]}``. It holds every message. The keys ``login``, ``locale``, ``data`` and ``expires_in_s``
are left out where they are empty or the action's own.

The encoder refuses what a format cannot hold. The decoder reads both. It accepts exactly the CSV that the
encoder writes, and any JSON with these keys.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from mailroom.actions import Action
from mailroom.errors import UnknownAction, WireError
from mailroom.tokens import TOKEN_CHARACTERS

FIELDS: Final = ("action", "email", "username", "secret", "code")
MAX_MESSAGES: Final = 10_000
MAX_DATA_BYTES: Final = 16_384
MAX_LOCALE: Final = 35
MAX_EXPIRES_IN_S: Final = 10**12
CODE_DIGITS: Final = 5
NO_DATA: Final[Mapping[str, str]] = {}

LineFormat = Literal["csv", "json"]
Columns = Sequence[Sequence[Any]]
"""Messages as columns, in the order of ``Message``."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_NEEDS_CARE: Final = re.compile('[,"\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_REFUSED: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LOCALE: Final = re.compile("[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*")
_TOKEN: Final = re.compile(f"[A-Za-z0-9_-]{{{TOKEN_CHARACTERS}}}")
_NUMBER: Final = re.compile("[1-9][0-9]?")
_CODE: Final = re.compile(f"[0-9]{{{CODE_DIGITS}}}")
_DIGITS: Final = string.digits.encode()
_TOKEN_ALPHABET: Final = string.ascii_letters.encode() + _DIGITS + b"_-"
# Possessive quantifiers: without backtracking the time is linear.
_FIELD: Final = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^",]*+))(,|\Z)')


class Reference(NamedTuple):
    """Names one attempt to mail a token.

    Attributes:
        token: the token's id.
        fingerprint: of its secret, 8 bytes; a failover can give its id to another token.
        attempt: the number of the attempt.
    """

    token: int
    fingerprint: bytes
    attempt: int


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
        reference: which attempt it is, for the provider's events; no line carries it.
    """

    action: Action
    email: str
    username: str
    token: str
    code: str
    locale: str = ""
    data: Mapping[str, str] = NO_DATA
    expires_in_s: int | None = None
    reference: Reference | None = None

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
    _check_signed(tokens, codes)
    return [
        f"{action.number},{email},{username},{token},{code}"
        for action, email, username, token, code in zip(
            actions, emails, usernames, tokens, codes, strict=True
        )
    ]


def encode_all_as_json(columns: Columns) -> list[str]:
    """The JSON object of each message.

    Raises:
        WireError: see ``checked``.
    """
    return [json.dumps(_as_object(message), ensure_ascii=False) for message in checked(columns)]


def checked(columns: Columns) -> list[Message]:
    """The messages, all of which can be encoded as JSON.

    Raises:
        WireError: the address is empty, the locale is not a language, data is too large, or a field holds a
            control character or half a surrogate pair. The text names the field and never shows its value.
    """
    batch = list(map(Message, *columns))
    _check_signed([message.token for message in batch], [message.code for message in batch])
    for message in batch:
        if not message.email:
            raise WireError("email: empty")
        _check_text("email", message.email)
        _check_text("login", message.username)
        if message.locale and not (len(message.locale) <= MAX_LOCALE and _LOCALE.fullmatch(message.locale)):
            raise WireError("locale: not a language, such as de or pt-BR")
        size = 0
        for name, value in message.data.items():
            _check_text("data", name)
            _check_text(f"data: {name}", value)
            size += len(name.encode()) + len(value.encode())
        if size > MAX_DATA_BYTES:
            raise WireError(f"data: larger than {MAX_DATA_BYTES} bytes")
    return batch


def join_line(encoded: Iterable[str], line_format: LineFormat = "csv") -> bytes:
    """The line of messages that ``encode_all`` or ``encode_all_as_json`` encoded."""
    if line_format == "json":
        return f'{{"mails": [{", ".join(encoded)}]}}\n'.encode()
    return (",".join(encoded) + "\n").encode()


def encode(batch: Sequence[Message], line_format: LineFormat = "csv") -> bytes:
    """A batch as its line.

    Raises:
        WireError: the batch is empty or has more than ``MAX_MESSAGES``, or this format cannot hold a message.
    """
    if not batch:
        raise WireError("a line has at least one message")
    if len(batch) > MAX_MESSAGES:
        raise WireError(f"a line has at most {MAX_MESSAGES} messages")
    if line_format == "json":
        return join_line(encode_all_as_json(list(zip(*batch, strict=True))), "json")
    for message in batch:
        if message.locale or message.data or message.expires_in_s is not None:
            raise WireError("locale, data and expires_in_s: five fields do not hold them")
    return join_line(encode_all(*list(zip(*batch, strict=True))[: len(FIELDS)]))


def encode_either(batch: Sequence[Message]) -> bytes:
    """A batch as CSV if that holds it, otherwise as JSON; raises what ``encode`` does."""
    return encode(batch, "csv" if all(message.fits_csv for message in batch) else "json")


def decode(line: bytes, actions: Mapping[str, Action]) -> list[Message]:
    r"""A line (with its ``\n``) as its batch.

    Args:
        line: the line, in either format.
        actions: those that it may hold, by name.

    Raises:
        WireError: the line cannot be read. For CSV the text gives the column, counted in characters from 1,
            and the field; for JSON the number of the mail, and the key. It is an UnknownAction if that is the
            first fault.
    """
    text = _text_of(line)
    numbered = {action.number: action for action in actions.values()}
    if text.startswith("{"):
        mails = enumerate(_mails(text), start=1)
        return [_read_object(f"mail {number}", one, numbered) for number, one in mails]
    fields = _split(text)
    by_text = {str(number): action for number, action in numbered.items()}
    return [_read(fields[at : at + len(FIELDS)], by_text) for at in range(0, len(fields), len(FIELDS))]


def split_line(line: bytes) -> list[bytes]:
    """The messages of a line, each as a line of its own.

    Raises:
        WireError: the line cannot be divided into messages.
    """
    text = _text_of(line)
    if text.startswith("{"):
        return [join_line([json.dumps(one)], "json") for one in _mails(text)]
    starts = [at - 1 for at, _ in _split(text)[:: len(FIELDS)]]
    ends = [start - 1 for start in starts[1:]] + [len(text)]
    return [join_line([text[start:end]]) for start, end in zip(starts, ends, strict=True)]


def _text_of(line: bytes) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"byte {error.start + 1}: not UTF-8") from None
    if not text.endswith("\n"):
        raise WireError(f"column {len(text) + 1}: the line is cut off")
    text = text[:-1]
    if control := _CONTROL.search(text):
        raise WireError(f"column {control.start() + 1}: a control character")
    return text


def _check_signed(tokens: Sequence[str], codes: Sequence[str]) -> None:
    if not _all_of(tokens, TOKEN_CHARACTERS, _TOKEN_ALPHABET):
        raise WireError("secret: not a token")
    if not _all_of(codes, CODE_DIGITS, _DIGITS):
        raise WireError("code: not five digits")


def _check_text(name: str, value: str) -> None:
    if found := _REFUSED.search(value):
        is_control = found[0] < "\ud800"
        raise WireError(f"{name}: " + ("holds a control character" if is_control else "not valid Unicode"))


def _as_object(message: Message) -> dict[str, Any]:
    every = {
        "action": message.action.number,
        "email": message.email,
        "login": message.username,
        "token": message.token,
        "code": message.code,
        "locale": message.locale,
        "data": dict(message.data),
        "expires_in_s": message.expires_in_s,
    }
    return {key: value for key, value in every.items() if value not in ("", {}, None)}


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
    """The fields with their columns, five for each message."""
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
            break
    if len(fields) % len(FIELDS):
        raise WireError(f"column {len(text) + 1}: {len(fields)} fields, not a multiple of {len(FIELDS)}")
    return fields


def _read(fields: list[tuple[int, str]], numbered: Mapping[str, Action]) -> Message:
    (at_action, number), (at_email, email), (at_name, username), (at_token, token), (at_code, code) = fields
    action = numbered.get(number)
    if action is None:
        kind = UnknownAction if _NUMBER.fullmatch(number) else WireError
        raise kind(f"column {at_action}: action: not the number of an action")
    if not email:
        raise WireError(f"column {at_email}: email: empty")
    if not username:
        raise WireError(f"column {at_name}: username: empty")
    if not _TOKEN.fullmatch(token):
        raise WireError(f"column {at_token}: secret: not a token")
    if not _CODE.fullmatch(code):
        raise WireError(f"column {at_code}: code: not five digits")
    return Message(action, email, username, token, code)


def _mails(text: str) -> list[Any]:
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        place = f"column {error.colno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise WireError(f"{place}not JSON") from None
    if list(content) != ["mails"] or not isinstance(content["mails"], list):
        raise WireError('not an object with the list "mails" and nothing else')
    mails: list[Any] = content["mails"]
    if not 1 <= len(mails) <= MAX_MESSAGES:
        raise WireError(f"{len(mails)} mails, and a line has 1 to {MAX_MESSAGES}")
    return mails


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise WireError("a key is repeated")
    return content


def _read_object(where: str, content: Any, numbered: Mapping[int, Action]) -> Message:
    if not isinstance(content, dict):
        raise WireError(f"{where}: not an object")
    left = dict(content)
    number, lifetime_s, data = left.pop("action", None), left.pop("expires_in_s", None), left.pop("data", {})
    texts = [left.pop(key, "") for key in ("email", "login", "token", "code", "locale")]
    if left:
        raise WireError(f"{where}: it has a key that no mail has")
    action = numbered.get(number) if type(number) is int else None
    if action is None:
        kind = UnknownAction if type(number) is int else WireError
        raise kind(f"{where}: action: not the number of an action")
    if not all(isinstance(text, str) for text in texts):
        raise WireError(f"{where}: email, login, token, code or locale: not text")
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise WireError(f"{where}: data: not an object of texts")
    if lifetime_s is not None and not (type(lifetime_s) is int and 0 <= lifetime_s <= MAX_EXPIRES_IN_S):
        raise WireError(f"{where}: expires_in_s: not a number of seconds")
    email, login, token, code, locale = texts
    message = Message(action, email, login, token, code, locale, data, lifetime_s)
    try:
        checked([(field,) for field in message])
    except WireError as error:
        raise WireError(f"{where}: {error}") from None
    return message
