"""Transports: one file a provider, which translates messages into its calls and its answers back.

A transport knows nothing of retries, rates or queues; the sender knows nothing of providers. How to
write one stands in docs/adding-a-transport.md, and one suite of tests runs over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from mailroom.answers import Answer
from mailroom.settings.sender import SenderSettings, SmtpServer
from mailroom.wire import Message

# An attempt to connect is given up after this time.
CONNECT_TIMEOUT_S: Final = 5.0


class Transport(Protocol):
    """What sends mail. Every method blocks, and several threads may call ``send`` at a time.

    Attributes:
        name: what logs call it.
        recipients_per_call: the most messages that one ``send`` takes.
    """

    name: str
    recipients_per_call: int

    def check(self) -> None:
        """See, before the first mail, that none would be dropped for the way this is set up.

        Raises:
            MailroomError: one would be. A provider that does not answer is no reason.
        """

    def quota(self) -> float | None:
        """Recipients a second that the provider allows; None when it does not say."""

    def send(self, messages: Sequence[Message]) -> list[Answer]:
        """Send one mail to each recipient, in one attempt.

        Args:
            messages: one to ``recipients_per_call`` of them, all of one action.

        Returns:
            An outcome for each message, in their order. Whatever the provider or the network does
            is an outcome and no exception.
        """

    def close(self) -> None:
        """Let go of connections."""


def open_transport(settings: SenderSettings) -> Transport:
    """The transport that the settings name, ready to send; nothing is asked of a provider yet.

    Raises:
        MailroomError: it cannot be used as it is set up.
    """
    # Imported when needed: whoever sends over SMTP does without botocore.
    if settings.transport == "debug":
        from mailroom.transports.debug import DebugTransport

        return DebugTransport(settings)
    if isinstance(settings.transport, SmtpServer):
        from mailroom.transports.smtp import SmtpTransport

        return SmtpTransport(settings, settings.transport)
    from mailroom.transports.ses import SesTransport

    return SesTransport(settings)
