"""Serves the inbox's HTTP and SMTP with uvicorn: it stops at once, and an answer may cut its connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from starlette.types import ASGIApp

from mailroom.inbox.app import create_app
from mailroom.inbox.changes import Changes
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.smtp import SmtpInbox
from mailroom.web.server import HttpProtocol, Server, stop_accepting

TASKS_END_S: Final = 5.0


class InboxHttpProtocol(HttpProtocol):
    """Puts the connection into each request's state, as ``transport``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class InboxHttpServer(Server):
    """Also serves SMTP on a second socket, if there is one, and stops without waiting for clients.

    Args:
        app: the application.
        smtp: serves SMTP.
        smtp_socket: the socket for SMTP.
        options: for uvicorn.
    """

    def __init__(
        self, app: ASGIApp, smtp: SmtpInbox, smtp_socket: socket.socket | None, **options: Any
    ) -> None:
        super().__init__(app, ends_in_s=0, **options)
        self._smtp = smtp
        self._smtp_socket = smtp_socket

    async def main_loop(self) -> None:
        """Serve until the server is stopped."""
        if self._smtp_socket:
            loop = asyncio.get_running_loop()
            self.servers.append(await loop.create_server(self._smtp.connection, sock=self._smtp_socket))
        await super().main_loop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        """Cut the calls in progress; uvicorn would wait for them."""
        await stop_accepting(self.servers)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self._smtp.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=TASKS_END_S)


def create_server(
    inbox: Inbox,
    on_call: Callable[[], None],
    smtp_socket: socket.socket | None,
    *,
    address: str,
    names: Iterable[str],
    keep_alive_s: int,
) -> Server:
    """Return a server for an inbox; see ``create_app`` for ``on_call``, ``address`` and ``names``."""
    changes = Changes()

    def called() -> None:
        on_call()
        changes.notify()

    return InboxHttpServer(
        create_app(inbox, called, changes, address, names),
        SmtpInbox(inbox, called),
        smtp_socket,
        http=InboxHttpProtocol,
        timeout_keep_alive=keep_alive_s,
    )
