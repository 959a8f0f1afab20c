"""The queue's page as a server, in a thread of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from mailroom.console.reader import Reader
from mailroom.console.snapshot import Snapshots
from mailroom.errors import DatabaseUnavailable, MailroomError
from mailroom.settings.collector import QueueSettings
from mailroom.web.listening import authority, listen

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

EXTRAS: Final = ("starlette", "uvicorn", "h11", "jinja2", "markupsafe")
PATIENCE_S: Final = 30.0
ENDS_IN_S: Final = 1


class ConsoleError(MailroomError):
    """The page cannot be served here."""

    exit_code = 69


class ConsoleServer:
    """Serves while the context is entered.

    Args:
        settings: where the queue is.
        host: the address to listen on.
        port: 0 for any that is free.
        read_only: let nobody change anything; a standby of the database will do then.

    Attributes:
        url: of the page.
    """

    def __init__(
        self,
        settings: QueueSettings,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        read_only: bool = False,
    ) -> None:
        self.url = ""
        self._settings = settings
        self._place = host, port
        self._read_only = read_only

    def __enter__(self) -> Self:
        """Look at the queue once, and listen. A database that does not answer yet is waited for.

        Raises:
            ConsoleError: the extra is not installed, or the port is taken.
            DatabaseError: the database is not to be used as it is: not this schema.
        """
        try:
            import uvicorn  # noqa: F401 - to miss it here, if at all

            from mailroom.console.app import create_app
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRAS:
                raise
            raise ConsoleError(
                f"the package {package} is not installed",
                hint="install the extra: pip install 'mailroom-postgresql[http]', or '.[http]' in a clone",
            ) from None
        listening = _listen(*self._place)
        self._reader = Reader(self._settings.database_url, read_only=self._read_only)
        snapshots = Snapshots(self._reader)
        try:
            with contextlib.suppress(DatabaseUnavailable):
                self._reader.ask_now(snapshots.take)
        except BaseException:
            listening.close()
            self._reader.close()
            raise
        address = listening.getsockname()[0]
        app = create_app(
            self._reader, snapshots, self._settings, address, [self._place[0]], read_only=self._read_only
        )
        self.url = f"http://{authority(listening)}"
        self._server, ready = _server(app)
        self._thread = threading.Thread(
            target=self._server.run, args=[[listening]], name="console", daemon=True
        )
        self._thread.start()
        ready.wait(PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        self._reader.close()


def _server(app: ASGIApp) -> tuple[uvicorn.Server, threading.Event]:
    """A server that leaves logging and signals alone, and what it sets once it runs or failed to."""
    import uvicorn

    ready = threading.Event()

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        def run(self, sockets: list[socket.socket] | None = None) -> None:
            try:
                super().run(sockets)
            finally:
                ready.set()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready.set()

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=ENDS_IN_S,
    )
    return Server(config), ready


def _listen(host: str, port: int) -> socket.socket:
    listening = listen(
        host,
        port,
        fault=ConsoleError,
        taken="choose another with --port, or end what listens there",
        elsewhere="choose an address of this machine with --host, and a port that you may take with --port",
    )
    # asyncio sends small answers at once over sockets that know their protocol, as this one then does.
    return socket.socket(fileno=listening.detach())
