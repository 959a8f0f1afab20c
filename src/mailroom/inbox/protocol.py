"""uvicorn, as the inbox needs it: a server that ends at once, and connections that an answer may cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mailroom.inbox.app import create_app
from mailroom.inbox.changes import Changes
from mailroom.inbox.inbox import Inbox
from mailroom.inbox.smtp import SmtpInbox

TASKS_END_S: Final = 5.0


class Protocol(H11Protocol):
    """Puts the connection into each request's state, as ``transport``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        # asyncio does this for sockets that name their protocol only, and ours are made without. An
        # answer is written in two pieces: the second would wait 40 ms for the first one's receipt.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class Server(uvicorn.Server):
    """Runs until ``stop`` is called from any thread; ``ready`` is set once it runs, or failed to.

    Args:
        config: uvicorn's.
        smtp: what answers on the second socket.
    """

    def __init__(self, config: uvicorn.Config, smtp: SmtpInbox) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._smtp = smtp
        self._smtp_socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def run_to_end(self, listening: socket.socket, smtp: socket.socket | None) -> None:
        """Serve HTTP on a socket, and SMTP on another if there is one; close them."""
        self._smtp_socket = smtp
        try:
            with listening, smtp or contextlib.nullcontext():
                self.run([listening])
        finally:
            self.ready.set()

    def stop(self) -> None:
        """End, and cut the calls that are under way."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    async def main_loop(self) -> None:
        """Wait for the end, where uvicorn looks for it ten times a second."""
        self._loop = asyncio.get_running_loop()
        if self._smtp_socket:
            self.servers.append(await self._loop.create_server(self._smtp.connection, sock=self._smtp_socket))
        self.ready.set()
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's
        """End without waiting for clients, where uvicorn would."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self._smtp.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=TASKS_END_S)


def create_server(
    inbox: Inbox, told: Callable[[], None], *, address: str, names: Iterable[str], keep_alive_s: int
) -> Server:
    """A server for this inbox, at this address and by these names; it leaves logging and signals alone."""
    changes = Changes()

    def told_by_smtp() -> None:
        told()
        changes.notify()

    return Server(
        uvicorn.Config(
            create_app(inbox, told, changes, address, names),
            loop="asyncio",
            http=Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=keep_alive_s,
        ),
        SmtpInbox(inbox, told_by_smtp),
    )
