"""What stands before every page: whom we answer, who may change things, and the headers of each answer.

Pages on loopback are within reach of every site that the same browser has open. So a request has to
name us as its host (else a site could make its own name mean 127.0.0.1, and read), and whatever
changes something has to come from our own pages or from no browser at all. Other sites' pages may lead
to ours, and no more: what they cannot read they could still time. Clients that are no browsers send
neither ``Origin`` nor ``Sec-Fetch-Site`` and notice nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What is no page: nobody is led there from another site.
FOR_PROGRAMS: Final = ("/api/", "/events", "/live")
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """An application with a guard before it. It is ASGI, and leaves everything but HTTP alone.

    Args:
        app: the application. Headers that it sets itself stay as they are.
        address: the one that it is bound to. On loopback, requests may name loopback and ``names``
            only; elsewhere any host, for nobody knows all our names there.
        names: other names of ours.
    """

    def __init__(self, app: ASGIApp, address: str, names: Iterable[str] = ()) -> None:
        self._app = app
        self._names = {name.lower() for name in names}
        self._any_host = not _is_loopback(address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                # A page that is sandboxed would not be shown at all with it.
                if "sandbox" not in headers["Content-Security-Policy"]:
                    headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
            await send(message)

        fault = self._fault(scope["method"], scope["path"], Headers(scope=scope))
        app = PlainTextResponse(fault[1], fault[0]) if fault else self._app
        await app(scope, receive, send_with_headers)

    def _fault(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Why a request is refused: a status and a sentence."""
        host = headers.get("host", "")
        if host and not (self._any_host or _name(host) in self._names or _is_loopback(_name(host))):
            return 421, "This listens on loopback only, and answers to localhost and 127.0.0.1 alone.\n"
        site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
        if method in SAFE_METHODS:
            led_here = headers.get("sec-fetch-dest") == "document" and not path.startswith(FOR_PROGRAMS)
            if site in ("cross-site", "same-site") and not led_here:
                return 403, "Another site's page may lead here, and no more.\n"
            return None
        if site not in ("", "same-origin", "none") or (
            not site
            and origin
            and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
        ):
            return 403, "Another site's page may change nothing here.\n"
        return None


def _name(host: str) -> str:
    """A ``Host`` without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
