"""What every request passes before it reaches a route: headers, host, origin, size."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import bearer_of

#: Most bytes of the body of a request.
LARGEST_BODY = 64 * 1024
#: Nothing is loaded from another server, and no script or style stands in a page itself.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Guards:
    """Refuses requests that no page of this server sends, and adds headers to every answer.

    - The header `Host` must name this server. A page of another site whose name was made to lead
      here (DNS rebinding) has its own name there.
    - A request that changes something must come from a page of this server, by `Origin`, and its
      body must be JSON, which a form of another site cannot send. A program with a bearer token may
      send any `Origin`: a browser adds no such token by itself. What only browsers send,
      `Sec-Fetch-Site`, is believed in any case.
    - The body has at most `LARGEST_BODY` bytes.

    Args:
        app: The application.
        host: Host that the server listens on.
        public_url: Address under which people reach it behind a proxy.
    """

    def __init__(self, app: ASGIApp, host: str, public_url: str | None = None) -> None:
        self._app = app
        self._loopback = is_loopback(host)
        self._names = {*_LOOPBACK, host.lower()}
        if not self._loopback:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        public = urlsplit(public_url or "")
        self._public = f"{public.scheme}://{public.netloc}".lower() if public_url else ""
        if public.hostname:
            self._names.add(public.hostname)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(send_with_headers, *refusal)
            return
        body = _Body(receive)
        try:
            await self._app(scope, body.receive, send_with_headers)
        except TooLargeError:
            if started:
                raise
            await _refuse(send_with_headers, *_TOO_LARGE)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason for which a request is refused by its headers; None if it is not."""
        headers = Headers(scope=scope)
        if not self._knows(headers.get("host", "")):
            return 421, (
                f"this server is not {headers.get('host', '')[:200]!r}; open the address that it "
                "printed, or name the address of a proxy with public_url"
            )
        if scope["method"] in ("GET", "HEAD"):
            return None
        if self._is_of_another_site(headers):
            return 403, "this request comes from a page of another server"
        if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return 415, "the body of a request is JSON: set Content-Type to application/json"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            return 400, "the header Content-Length is not a number"
        return _TOO_LARGE if len(length) > 9 or int(length) > LARGEST_BODY else None

    def _is_of_another_site(self, headers: Headers) -> bool:
        """Whether a page of another server sends a request."""
        if headers.get("sec-fetch-site", "").lower() in ("cross-site", "same-site"):
            return True
        if bearer_of(headers.get("authorization")) is not None:
            return False
        origin = headers.get("origin", "").lower()
        here = urlsplit(f"//{headers.get('host', '').lower()}").netloc
        return bool(origin) and origin != self._public and _netloc(origin) != here

    def _knows(self, host: str) -> bool:
        """Whether the header `Host` names this server."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        # An address cannot be the name of another site. A server that only this machine reaches is
        # known by its own addresses.
        return name in self._names or (not self._loopback and _is_address(name))


class TooLargeError(Exception):
    """The body of a request has more than `LARGEST_BODY` bytes."""


_TOO_LARGE = (413, f"the body of the request has more than {LARGEST_BODY:,} bytes")


class _Body:
    """Counts the bytes of a body, which may be sent without saying how many they are."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes = 0

    async def receive(self) -> Message:
        """Return the next part."""
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > LARGEST_BODY:
            raise TooLargeError
        return message


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    headers: Iterable[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
