"""Sockets that listen, or an error that says what to choose instead."""

from __future__ import annotations

import errno
import socket

from mailroom.errors import MailroomError


def listen(
    host: str, port: int, *, fault: type[MailroomError], setting: str = "", taken: str, elsewhere: str
) -> socket.socket:
    """A socket that listens on an address of this machine's; port 0 is any that is free.

    Args:
        host: the address.
        port: the port.
        fault: the error to raise.
        setting: what the error begins with.
        taken: the hint when something listens there already.
        elsewhere: the hint when it is no address of ours, or a port that we may not take.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise fault(
            f"{setting}cannot listen on {host}:{port}: {error.strerror or error}",
            hint=taken if error.errno == errno.EADDRINUSE else elsewhere,
        ) from None


def authority(listening: socket.socket) -> str:
    """Where a socket listens, as an address on the web has it."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
