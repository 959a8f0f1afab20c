"""Guards every page: refuses requests that another site's page makes, and sets the headers of each answer.

A page on loopback can be reached by every site that is open in the same browser. Hence:

- A request's ``Host`` must be one of our names. Otherwise a site could point its own name at 127.0.0.1 and
  read our answers.
- A request that changes something must come from our own pages, or from a client that is not a browser.
  Such clients send neither ``Origin`` nor ``Sec-Fetch-Site``.
- Another site's page may link to ours. All its other requests are refused: it cannot read the answers, but
  it could time them.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# These are not pages: no link from another site leads here.
FOR_PROGRAMS: Final = ("/api/", "/events", "/live")
SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
# A call to AWS. Its answer is for no browser, and AWS's own has no such headers.
SIGNED: Final = "AWS4-HMAC-SHA256 "
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
    """An application behind the guard, as an ASGI application. What is not HTTP passes unchanged.

    Args:
        app: the application. Headers that it sets itself are kept.
        address: the address that it is bound to. On loopback, a request's host must be loopback or one of
            ``names``. Elsewhere it may be any, since the names of other interfaces are not known.
        names: more names of this server.
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

        given = Headers(scope=scope)
        fault = self._fault(scope["method"], scope["path"], given)
        if not fault and given.get("authorization", "").startswith(SIGNED):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                # A browser does not show a sandboxed page that has it.
                if "sandbox" not in headers["Content-Security-Policy"]:
                    headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
            await send(message)

        app = PlainTextResponse(fault[1], fault[0]) if fault else self._app
        await app(scope, receive, send_with_headers)

    def _fault(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """The status and the text of a refusal; None if the request is allowed."""
        host = headers.get("host", "")
        if host and not (self._any_host or _name(host) in self._names or _is_loopback(_name(host))):
            return (
                421,
                "This server listens on loopback and answers to the hosts localhost and 127.0.0.1 only.\n",
            )
        site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
        if method in SAFE_METHODS:
            led_here = headers.get("sec-fetch-dest") == "document" and not path.startswith(FOR_PROGRAMS)
            if site in ("cross-site", "same-site") and not led_here:
                return 403, "A page of another site may link here, but not request anything else.\n"
            return None
        if site not in ("", "same-origin", "none") or (
            not site
            and origin
            and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
        ):
            return 403, "A page of another site may not change anything here.\n"
        return None


def _name(host: str) -> str:
    """The ``Host`` header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
