"""Composes a rendered mail for SMTP: multipart, with text and HTML."""

from __future__ import annotations

from datetime import UTC, datetime
from email import policy
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from typing import Final

from mailroom.templates.mails import RenderedMail

MAX_PLAIN_SUBJECT: Final = 68  # the line of a header should have at most 78 characters


def compose(
    mail: RenderedMail,
    language: str,
    sender: Address,
    recipient: Address,
    message_id: str,
    reply_to: Address | None = None,
) -> bytes:
    """The bytes of a mail in a language, with a last line break."""
    utf8 = not recipient.username.isascii()
    message = EmailMessage(policy.SMTP.clone(cte_type="7bit", utf8=utf8))
    message["From"] = sender
    message["To"] = recipient
    if reply_to:
        message["Reply-To"] = reply_to
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = f"<{message_id}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    message.add_alternative(mail.html, subtype="html")
    message["Content-Language"] = language  # set_content removes it
    # EmailMessage would decode a login such as =?utf-8?q?…?=, as if it were an encoded word.
    subject = " ".join(mail.subject.splitlines())
    if not subject.isascii() or "=?" in subject or len(subject) > MAX_PLAIN_SUBJECT:
        subject = Header(subject, "utf-8", header_name="Subject").encode(linesep="\r\n")
    return f"Subject: {subject}\r\n".encode() + message.as_bytes()
