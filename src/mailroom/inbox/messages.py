"""Mails as messages: read from what SMTP brought, and written to be downloaded.

Both take anything from anybody. What cannot be read as MIME is shown as the text that it is; nothing
that stands in a mail begins a header or ends one.
"""

from __future__ import annotations

import email
import re
from datetime import datetime
from email import policy
from email.header import Header, decode_header, make_header
from email.message import EmailMessage, Message
from email.parser import BytesHeaderParser
from email.utils import format_datetime
from typing import Final, NamedTuple

MAX_HEADER: Final = 10_000
MAX_PLAIN: Final = 500
# The email package takes quadratic time over what has more of these.
MAX_MULTIPARTS: Final = 20
# It makes an object of each part, and of each block of a report's.
MAX_PARTS: Final = 1000
_FOLDED: Final = re.compile(rb"(?im)^content-[a-z-]{1,40}:.*(?:\r?\n[ \t].*){10}")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Rendered(NamedTuple):
    """What a mail shows; a part that it does not have is empty."""

    subject: str
    text: str
    html: str


def read_message(content: bytes) -> Rendered:
    """What a message shows."""
    subject = read_header(content, "Subject")
    if _is_laborious(content):
        return Rendered(subject, _unix(content.decode("utf-8", "replace")), "")
    try:
        message = email.message_from_bytes(content)
        leaves = [part for part in message.walk() if not part.is_multipart() and not part.get_filename()]
        texts: dict[str, str] = {}
        for part in leaves:
            if (kind := part.get_content_type()) in ("text/plain", "text/html"):
                texts.setdefault(kind, _unix(_decoded(part)))
    except Exception:  # noqa: BLE001 - the package raises many things over hostile mails
        return Rendered(subject, _unix(content.decode("utf-8", "replace")), "")
    return Rendered(subject, texts.get("text/plain", ""), texts.get("text/html", ""))


def _is_laborious(content: bytes) -> bool:
    """Whether the email package would take seconds over it, for nothing that anybody would send."""
    lower = content.lower().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return (
        lower.count(b"multipart/") > MAX_MULTIPARTS
        or lower.count(b"\n--") > MAX_PARTS
        or (b"message/" in lower and lower.count(b"\n\n") > MAX_PARTS)
        or _FOLDED.search(content) is not None
    )


def read_header(content: bytes, name: str) -> str:
    """The first header of a name, decoded and on one line; empty when there is none."""
    lower = name.lower()
    value = next((value for key, value in read_headers(content) if key.lower() == lower), "")[:MAX_HEADER]
    try:
        value = str(make_header(decode_header(value)))
    except Exception:  # noqa: BLE001 - as above; it stays as it was written
        value = value.strip()
    return _CONTROL.sub(" ", value)


def read_headers(content: bytes) -> list[tuple[str, str]]:
    """All headers as they were written, unfolded."""
    try:
        head = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[0] + b"\n\n"
        message = BytesHeaderParser(policy=policy.compat32).parsebytes(head)
        # Header makes an object of what is not ASCII.
        return [(name, re.sub(r"\r?\n\s*", " ", _raw(value))) for name, value in message.raw_items()]
    except Exception:  # noqa: BLE001 - as above
        return []


def write_message(rendered: Rendered, id: str, time: datetime, source: str, recipient: str) -> bytes:
    """A mail that was rendered here, as the message that SES would have sent."""
    message = EmailMessage(policy.SMTP.clone(cte_type="7bit"))
    if rendered.text or not rendered.html:
        message.set_content(_SURROGATE.sub("\ufffd", rendered.text))
    if rendered.html:
        html = _SURROGATE.sub("\ufffd", rendered.html)
        (message.add_alternative if rendered.text else message.set_content)(html, subtype="html")
    headers = {
        "From": source,
        "To": recipient,
        "Subject": rendered.subject,
        "Date": format_datetime(time),
        "Message-ID": f"<{id}@email.amazonses.com>",
    }
    head = "".join(f"{name}: {_encoded(name, value)}\r\n" for name, value in headers.items())
    return head.encode("ascii") + message.as_bytes()


def _encoded(name: str, value: str) -> str:
    """A header's value on lines that are its own."""
    value = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", value)).strip()
    if value.isascii() and "=?" not in value and len(value) < MAX_PLAIN:
        return value
    return Header(value, "utf-8", header_name=name).encode(linesep="\r\n")


def _decoded(part: Message) -> str:
    payload = part.get_payload(decode=True)
    content = payload if isinstance(payload, bytes) else b""
    try:
        return content.decode(part.get_content_charset() or "utf-8", "replace")
    except (LookupError, ValueError):
        return content.decode("utf-8", "replace")


def _raw(value: object) -> str:
    """A header's value, with bytes that are not ASCII taken for UTF-8."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")
