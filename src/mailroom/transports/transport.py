"""Defines what a transport does: it translates messages into a provider's calls, and the replies back.

There is one file for each provider. A transport handles no retries, rates or queues; the sender has no code
for a particular provider. docs/adding-a-transport.md explains how to write a transport. The same tests run
for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from mailroom.answers import Answer
from mailroom.settings.sender import SenderSettings
from mailroom.settings.transports import SmtpServer
from mailroom.wire import Message

# The time limit for an attempt to connect.
CONNECT_TIMEOUT_S: Final = 5.0
# Recipients a second, where neither a setting nor the provider says: what SES allows an account that has just
# left the sandbox.
DEFAULT_RATE: Final = 14.0
# SES reports an exhausted quota as a throttle, over its API and over SMTP; it lasts for hours.
DAILY_QUOTA: Final = "daily message quota"


class Transport(Protocol):
    """Sends mail through one provider. Every method blocks; several threads may call ``send`` at a time.

    Attributes:
        name: its name in logs.
        recipients_per_call: the most messages that one ``send`` takes.
    """

    name: str
    recipients_per_call: int

    def check(self) -> Answer | None:
        """Check, before the first mail, that the configuration would not lose mails.

        Returns:
            The answer that every mail would get, if that is known without a call. It is checked again later.

        Raises:
            MailroomError: it would. A provider that does not answer is not an error here.
        """

    def quota(self) -> float | None:
        """Recipients a second that the provider allows; None when it does not say."""

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """Send one mail to each recipient, in one attempt.

        Args:
            messages: one to ``recipients_per_call`` of them, all of one action and one locale.

        Returns:
            An answer for each message, in their order. A failure of the provider or of the network
            is an answer, not an exception.
        """

    def close(self) -> None:
        """Close the connections."""


def open_transports(settings: SenderSettings) -> list[Transport]:
    """The transports that the settings name, as ``open_transport`` opens each. No two have the same name.

    Raises:
        MailroomError: the configuration of one cannot be used.
    """
    settings.check_rates()
    opened = [open_transport(each) for each in settings.each]
    if len({transport.name for transport in opened}) < len(opened):  # two mail servers
        for transport, each in zip(opened, settings.each, strict=True):
            if isinstance(each.transport, SmtpServer):
                transport.name = f"smtp {each.transport.host}:{each.transport.port}"
    return opened


def open_transport(settings: SenderSettings) -> Transport:
    """The transport that the settings name, of two the first, ready to send; it contacts no provider yet.

    Raises:
        MailroomError: its configuration cannot be used.
    """
    # Imported when needed, so that SMTP works without botocore.
    if settings.transport == "debug":
        from mailroom.transports.debug import DebugTransport

        return DebugTransport(settings)
    if isinstance(settings.transport, SmtpServer):
        from mailroom.transports.smtp import SmtpTransport

        return SmtpTransport(settings, settings.transport)
    if settings.transport == "sesv2":
        from mailroom.transports.sesv2 import SesV2Transport

        return SesV2Transport(settings)
    from mailroom.transports.ses import SesTransport

    return SesTransport(settings)
