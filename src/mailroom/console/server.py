"""Serves the console, in its own thread."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Final, Self

from mailroom.console.reader import ConsoleReader
from mailroom.console.snapshot import Snapshots
from mailroom.errors import DatabaseUnavailable, MailroomError
from mailroom.settings.collector import QueueSettings
from mailroom.web.listening import authority, extra_installed, listen

ENDS_IN_S: Final = 1


class ConsoleError(MailroomError):
    """The console cannot be served."""

    exit_code = 69


class ConsoleServer:
    """Serves while the context is entered.

    Args:
        settings: where the queue is.
        host: the address to listen on.
        port: 0 for any that is free.
        read_only: refuse all changes; a standby of the database is enough then.

    Attributes:
        url: the address of the page.
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
        """Check the queue once, and listen. A database that does not answer may answer later.

        Raises:
            ConsoleError: the extra is not installed, or the port is taken.
            DatabaseError: the schema or a privilege is missing.
        """
        with extra_installed("http", ConsoleError):
            from mailroom.console.app import create_app
            from mailroom.web.server import Server
        listening = _listen(*self._place)
        self._reader = ConsoleReader(self._settings.database_url, read_only=self._read_only)
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
        self._server = Server(app, ends_in_s=ENDS_IN_S)
        self._server.start(listening, "console")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        self._reader.close()


def _listen(host: str, port: int) -> socket.socket:
    return listen(
        host,
        port,
        fault=ConsoleError,
        taken="choose another with --port, or stop the process that listens there",
        elsewhere="choose an address of this machine with --host, and a port that you may take with --port",
    )
