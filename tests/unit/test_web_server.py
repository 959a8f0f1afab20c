"""A server that stops leaves no connection open."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mailroom.web.server import stop_accepting


@pytest.mark.parametrize("turns", range(5))
def test_a_connection_that_arrives_at_the_end_is_served_or_closed(turns: int) -> None:
    """However many turns of the loop the end comes after it."""

    async def scenario(client: socket.socket) -> bytes:
        made: list[asyncio.BaseTransport] = []

        class Kept(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.append(transport)

        server = await asyncio.get_running_loop().create_server(Kept, "127.0.0.1", 0)
        client.connect(server.sockets[0].getsockname())
        for _ in range(turns):
            await asyncio.sleep(0)
        await stop_accepting([server])
        for transport in made:
            transport.close()
        await asyncio.sleep(0)
        client.settimeout(10)
        try:
            return client.recv(1)
        except ConnectionResetError:
            return b""

    with socket.socket() as client:
        assert b"" == asyncio.run(scenario(client))
