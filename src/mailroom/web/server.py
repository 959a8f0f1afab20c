"""Serves an application with uvicorn, on a socket that listens already.

It leaves signals and logging to the program, and waits without polling until it is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_S: Final = 30.0
TURNS_TO_ACCEPT: Final = 3  # of the loop, from a connection's arrival to its protocol


class HttpProtocol(H11Protocol):
    """Logs no request, whatever uvicorn's loggers do in this process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.access_log = False


class _Config(uvicorn.Config):
    def configure_logging(self) -> None:
        """Leave logging to the program: uvicorn would take the handlers of another server in it."""


class Server(uvicorn.Server):
    """Serves until it is stopped, or its task is cancelled.

    Args:
        app: the application.
        ends_in_s: how many seconds the requests under way have at the end.
        options: more of uvicorn's options.
    """

    def __init__(self, app: ASGIApp, *, ends_in_s: int, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "loop": "asyncio",
            "http": HttpProtocol,
            "ws": "none",
            "lifespan": "off",
            "interface": "asgi3",
            "log_config": None,
            "server_header": False,
            "date_header": False,
            "timeout_graceful_shutdown": ends_in_s,
        }
        super().__init__(_Config(app, **(defaults | options)))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._is_up = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield

    async def main_loop(self) -> None:
        """Wait until the server is stopped; uvicorn would poll ten times a second."""
        self._loop = asyncio.get_running_loop()
        self._is_up.set()
        await self._stop.wait()

    async def serve_on(self, listening: socket.socket) -> None:
        """Serve in this task until it is cancelled; close the socket."""
        with listening:
            try:
                await self.serve([listening])
            except asyncio.CancelledError:
                await self.shutdown()
                raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and end."""
        await stop_accepting(self.servers)
        await super().shutdown(sockets)

    def start(self, listening: socket.socket, name: str) -> None:
        """Serve in a thread of this name; returns once it serves, or failed to."""
        self._thread = threading.Thread(target=self._run, args=[listening], name=name, daemon=True)
        self._thread.start()
        self._is_up.wait(PATIENCE_S)

    def stop(self) -> None:
        """End the thread; returns once it has ended."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread:
            self._thread.join(PATIENCE_S)

    def _run(self, listening: socket.socket) -> None:
        try:
            with listening:
                self.run([listening])
        finally:
            self._is_up.set()


async def stop_accepting(servers: Iterable[asyncio.Server]) -> None:
    """Close servers after the connections that arrived just now have their protocols.

    asyncio before Python 3.13 leaves them open for good if the server closes meanwhile (cpython#109564).
    """
    loop = asyncio.get_running_loop()
    for server in servers:
        for listening in server.sockets:
            loop.remove_reader(listening.fileno())
    for _ in range(TURNS_TO_ACCEPT):
        await asyncio.sleep(0)
    for server in servers:
        server.close()
