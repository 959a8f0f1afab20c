"""Runs the inbox as a server in a thread: HTTP, and SMTP if asked for.

Idle connections are kept for 75 s, so that a client can reuse them as it does with SES. Stopping is quick:
calls that hang are cut.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from mailroom.errors import MailroomError
from mailroom.inbox.inbox import Inbox
from mailroom.web.listening import authority, extra_installed, listen

if TYPE_CHECKING:
    from mailroom.web.server import Server

KEEP_ALIVE_S: Final = 75
PATIENCE_S: Final = 30.0


class InboxError(MailroomError):
    """The inbox cannot listen here, or its extra is not installed."""

    exit_code = 69


class InboxServer:
    """Serves while the context is entered.

    Args:
        host: the address to listen on.
        port: the port; 0 for any free one.
        inbox: the inbox; None for a new one.
        smtp_port: the port for SMTP; 0 for any free one, None for no SMTP.

    Attributes:
        url: the address of the page, the API and SES's endpoint.
        smtp_url: the address of SMTP, for ``MAILROOM_TRANSPORT``; empty without SMTP.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        inbox: Inbox | None = None,
        smtp_port: int | None = None,
    ) -> None:
        self.inbox = inbox or Inbox()
        self.url = ""
        self.smtp_url = ""
        self._place = host, port
        self._smtp_port = smtp_port
        self._called = threading.Condition()

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            InboxError: the extra is not installed, or the port is in use.
        """
        with extra_installed("inbox", InboxError):
            from mailroom.inbox.protocol import create_server
        listening, smtp = _listen(*self._place, "--port"), None
        if self._smtp_port is not None:
            try:
                smtp = _listen(self._place[0], self._smtp_port, "--smtp-port")
            except InboxError:
                listening.close()
                raise
            self.smtp_url = f"smtp://{authority(smtp)}"
        self.url = f"http://{authority(listening)}"
        self._server: Server = create_server(
            self.inbox,
            self._notify,
            smtp,
            address=listening.getsockname()[0],
            names=[self._place[0]],
            keep_alive_s=KEEP_ALIVE_S,
        )
        self._server.start(listening, "inbox")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    def wait_for(self, condition: Callable[[Inbox], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait until a condition holds, which is checked after each call and each mail over SMTP.

        Raises:
            TimeoutError: it does not hold in time.
        """
        with self._called:
            if not self._called.wait_for(lambda: condition(self.inbox), timeout_s):
                raise TimeoutError(f"the condition does not hold after {timeout_s:g} s; {self.inbox.counts}")

    def _notify(self) -> None:
        with self._called:
            self._called.notify_all()


def _listen(host: str, port: int, option: str) -> socket.socket:
    return listen(
        host,
        port,
        fault=InboxError,
        taken=f"choose another port with {option}, or stop the process that listens there",
        elsewhere=f"choose an address of this machine with --host, and a port that you may use with {option}",
    )
