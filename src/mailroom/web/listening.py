"""Provides what a server needs before it serves: a socket that listens, and the packages of an extra.

If either is missing, the error says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Final

from mailroom.errors import MailroomError

EXTRAS: Final = ("starlette", "uvicorn", "h11", "jinja2", "markupsafe", "aiosmtpd")


def listen(
    host: str, port: int, *, fault: type[MailroomError], setting: str = "", taken: str, elsewhere: str
) -> socket.socket:
    """A socket that listens on an address of this machine; port 0 takes any free port.

    Args:
        host: the address.
        port: the port.
        fault: the error to raise.
        setting: how the error begins.
        taken: the hint when the port is taken.
        elsewhere: the hint when the address is not this machine's, or the port is not permitted.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise fault(
            f"{setting}cannot listen on {host}:{port}: {error.strerror or error}",
            hint=taken if error.errno == errno.EADDRINUSE else elsewhere,
        ) from None
    # asyncio sets TCP_NODELAY on the connections of a socket that names its protocol, as create_server's
    # does not. Without it the second part of an answer waits up to 40 ms for the first one's receipt.
    return socket.socket(made.family, made.type, socket.IPPROTO_TCP, fileno=made.detach())


def authority(listening: socket.socket) -> str:
    """A socket's address and port, as a URL has them."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def extra_installed(extra: str, fault: type[MailroomError], because: str = "") -> Iterator[None]:
    """Turns the failed import of an extra's package inside into an error that says how to install it.

    Args:
        extra: its name in pyproject.toml.
        fault: the error to raise.
        because: how the error begins.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise fault(
            f"{because}the package {package} is not installed",
            hint=f"install the extra: pip install 'mailroom-postgresql[{extra}]', or '.[{extra}]' in a clone",
        ) from None
