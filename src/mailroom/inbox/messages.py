"""Reads mails that came over SMTP, and writes mails as messages for downloads.

A message that cannot be parsed is shown as plain text. No text in a mail begins a header or ends one.
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
from typing import Final

from mailroom.templates.mails import RenderedMail

MAX_HEADER: Final = 10_000
# A longer value is encoded, which folds it.
MAX_PLAIN: Final = 500
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def read_message(content: bytes) -> RenderedMail:
    """Return the subject, the text and the HTML of a message."""
    subject = read_header(content, "Subject")
    try:
        message = email.message_from_bytes(content)
        leaves = [part for part in message.walk() if not part.is_multipart() and not part.get_filename()]
        texts: dict[str, str] = {}
        for part in leaves:
            if (kind := part.get_content_type()) in ("text/plain", "text/html"):
                texts.setdefault(kind, _unix(_decoded(part)))
    except Exception:  # noqa: BLE001 - the email package raises many errors on malformed messages
        return RenderedMail(subject, _unix(content.decode("utf-8", "replace")), "")
    return RenderedMail(subject, texts.get("text/plain", ""), texts.get("text/html", ""))


def read_header(content: bytes, name: str) -> str:
    """Return the first header of a name, decoded and on one line; empty if there is none."""
    lower = name.lower()
    value = next((value for key, value in read_headers(content) if key.lower() == lower), "")[:MAX_HEADER]
    try:
        value = str(make_header(decode_header(value)))
    except Exception:  # noqa: BLE001 - as above; the value stays encoded
        value = value.strip()
    return _CONTROL.sub(" ", value)


def read_headers(content: bytes) -> list[tuple[str, str]]:
    """Return all headers, unfolded and not decoded."""
    try:
        head = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[0] + b"\n\n"
        message = BytesHeaderParser(policy=policy.compat32).parsebytes(head)
        # A value that is not ASCII is a Header object.
        return [(name, re.sub(r"\r?\n\s*", " ", _raw(value))) for name, value in message.raw_items()]
    except Exception:  # noqa: BLE001 - as above
        return []


def write_message(
    rendered: RenderedMail, id: str, time: datetime, source: str, recipient: str, reply_to: str = ""
) -> bytes:
    """Return a rendered mail as the message that SES would have sent."""
    message = EmailMessage(policy.SMTP.clone(cte_type="7bit"))
    if rendered.text or not rendered.html:
        message.set_content(_SURROGATE.sub("\ufffd", rendered.text))
    if rendered.html:
        html = _SURROGATE.sub("\ufffd", rendered.html)
        (message.add_alternative if rendered.text else message.set_content)(html, subtype="html")
    headers = {
        "From": source,
        "To": recipient,
        **({"Reply-To": reply_to} if reply_to else {}),
        "Subject": rendered.subject,
        "Date": format_datetime(time),
        "Message-ID": f"<{id}@email.amazonses.com>",
    }
    head = "".join(f"{name}: {_encoded(name, value)}\r\n" for name, value in headers.items())
    return head.encode("ascii") + message.as_bytes()


def _encoded(name: str, value: str) -> str:
    """Return a header's value in ASCII; a line break in the value does not end the header."""
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
    """Return a header's value; bytes that are not ASCII are read as UTF-8."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")
