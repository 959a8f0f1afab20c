"""A TCP proxy that can go deaf: it stops forwarding and closes nothing, like a lost network."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Self


class Proxy:
    """Forwards a port of loopback to another, until a test interrupts it."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = self.passed_on = 0
        self._deaf: set[socket.socket] = set()
        self._servers: set[socket.socket] = set()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._ended = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the selector
        self._thread.join(10)

    def go_deaf(self, *, to_clients_only: bool = False) -> None:
        """Forward nothing more on the connections that are open now; new ones work.

        Args:
            to_clients_only: what clients send still arrives, and only the answers are lost.
        """
        self._deaf |= self._servers if to_clients_only else set(self._pairs)

    def _forward(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if source is self._listener:
                    self._accept()
                elif source in self._deaf:
                    self._selector.unregister(source)
                elif source in self._pairs:  # and was not closed a moment ago, with its other end
                    self._pass_on(source)
        for open_socket in [self._listener, *self._pairs]:
            open_socket.close()
        self._selector.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            client.close()
            return
        self.accepted += 1
        self._servers.add(server)
        for one, other in ((client, server), (server, client)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        target = self._pairs[source]
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(65536)
            if data:
                target.sendall(data)
                self.passed_on += 1
                return
        for end in (source, target):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
            self._pairs.pop(end, None)
            end.close()
