"""The network between the workers and their servers: TCP proxies that can go deaf.

A deaf proxy forwards nothing and closes nothing, as a lost network does. What was sent meanwhile arrives when
it hears again, unless one of the ends gave up before.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, Self

CHUNK: Final = 1 << 16
START_S: Final = 10.0


class Network:
    """Runs proxies in a thread while the context is entered."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._proxies: list[Proxy] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(START_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)
        self._loop.close()

    def proxy(self, target: Callable[[], int], *, answer_after_s: float = 0) -> Proxy:
        """Forward a new port of loopback.

        Args:
            target: returns the port to forward to, and is asked for each connection.
            answer_after_s: what the server sends arrives this much later.
        """
        proxy = Proxy(self._loop, target, answer_after_s)
        asyncio.run_coroutine_threadsafe(proxy.listen(), self._loop).result(START_S)
        self._proxies.append(proxy)
        return proxy

    async def _end(self) -> None:
        for proxy in self._proxies:
            proxy.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Proxy:
    """One port.

    Attributes:
        port: where it listens.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, target: Callable[[], int], after_s: float) -> None:
        self.port = 0
        self._loop = loop
        self._target = target
        self._after_s = after_s
        self._hears = asyncio.Event()
        self._hears.set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Take a free port."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0, limit=CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Take no more connections."""
        if self._server:
            self._server.close()

    def go_deaf(self) -> None:
        """Forward nothing from here on, in either direction."""
        self._loop.call_soon_threadsafe(self._hears.clear)

    def hear(self) -> None:
        """Forward again."""
        self._loop.call_soon_threadsafe(self._hears.set)

    async def _connect(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        await self._hears.wait()
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._target(), limit=CHUNK)
        except OSError:
            to_client.close()
            return
        try:
            await asyncio.gather(
                self._forward(client, to_server, 0), self._forward(server, to_client, self._after_s)
            )
        finally:
            for end in (to_client, to_server):
                end.close()

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, after_s: float
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                if after_s:
                    await asyncio.sleep(after_s)
                await self._hears.wait()
                target.write(data)
                await target.drain()
        target.close()
