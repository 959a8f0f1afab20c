"""The inbox as a server on loopback, in a thread of its own: HTTP, and SMTP if wanted.

Idle connections are kept for 75 s, as SES's are for long, so that a client's pool is never cut. The
end is quick: calls that hang are cut.
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
    """The inbox cannot be opened here."""

    exit_code = 69


class InboxServer:
    """Serves while the context is entered.

    Args:
        host: the address to listen on.
        port: 0 for any that is free.
        inbox: a fresh one for None.
        smtp_port: where to take mail over SMTP; 0 for any port that is free, None for nowhere.

    Attributes:
        url: of the page, the API and SES's endpoint.
        smtp_url: as ``MAILROOM_TRANSPORT`` takes it; empty without SMTP.
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
        self._told = threading.Condition()

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            InboxError: the extra is not installed, or the port is taken.
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
            self._tell,
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

    def wait_for(self, true: Callable[[Inbox], object], timeout_s: float = PATIENCE_S) -> None:
        """Wait until something is true of the inbox; it is looked at after each call, and mail over SMTP.

        Raises:
            TimeoutError: it did not become true.
        """
        with self._told:
            if not self._told.wait_for(lambda: true(self.inbox), timeout_s):
                raise TimeoutError(f"it is not so after {timeout_s:g} s; {self.inbox.counts}")

    def _tell(self) -> None:
        with self._told:
            self._told.notify_all()


def _listen(host: str, port: int, option: str) -> socket.socket:
    return listen(
        host,
        port,
        fault=InboxError,
        taken=f"choose another with {option}, or end what listens there",
        elsewhere="choose an address of this machine with --host,"
        f" and a port that you may take with {option}",
    )
