"""Who sends a request: the person of a personal link or of a bearer token, or whoever uses this
machine.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from .problems import ProblemError

if TYPE_CHECKING:
    from ..answers.service import AnswerService, Person

#: Wrong tokens of one address before it has to wait, and for how many seconds they count.
_WRONG = 20
_WINDOW = 60.0
#: Addresses that are remembered.
_ADDRESSES = 10_000
#: Seconds for which a person is known by the token without asking the ledger.
_KNOWN = 10.0
_COOKIE_DAYS = 30
_LONGEST_TOKEN = 200


class Access:
    """Finds the person of a request by the cookie that the personal link has set, or by the token
    of the link in the header `Authorization`.

    Args:
        service: Knows the people.
        port: Port of the server, part of the cookie's name: browsers send the cookies of one host
            to all its ports.
        local: The person of requests without a cookie; None where a link is required.
        secure: Whether the cookie is sent by https alone.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        service: AnswerService,
        port: int,
        local: Person | None,
        secure: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._cookie = f"fastreid_al_{port}"
        self._local = local
        self._secure = secure
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Person]] = {}
        self._wrong: dict[str, list[float]] = {}

    def person(self, request: Request) -> Person:
        """Return the person of a request.

        Raises:
            ProblemError: There is none (401), or too many wrong tokens came from the address (429).
        """
        bearer = bearer_of(request.headers.get("authorization"))
        if bearer is not None:
            # A wrong token is nobody, whatever cookie comes with it.
            found = self._of_token(bearer, request)
            if found is None:
                raise ProblemError(401, "the bearer token is not valid; it is the end of a link")
            return found
        token = request.cookies.get(self._cookie)
        if token is None:
            if self._local is None:
                raise ProblemError(401, "open your personal link first")
            return self._local
        found = self._of_token(token, request)
        if found is None:
            if self._local is not None:
                return self._local
            raise ProblemError(401, "this personal link is not valid any more; ask for a new one")
        return found

    def of_link(self, token: str, request: Request) -> Person:
        """Return the person of a personal link.

        Raises:
            ProblemError: There is none (404), or too many wrong tokens came from the address (429).
        """
        found = self._of_token(token, request)
        if found is None:
            raise ProblemError(404, "this personal link is not valid; ask for a new one")
        return found

    def remember(self, response: Response, token: str) -> None:
        """Have the browser send the token of a personal link from now on."""
        response.set_cookie(
            self._cookie,
            token,
            max_age=_COOKIE_DAYS * 24 * 3600,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )

    def _of_token(self, token: str, request: Request) -> Person | None:
        key = hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()
        now = self._clock()
        with self._lock:
            since, person = self._known.get(key, (-_KNOWN, None))
            if person is not None and 0 <= now - since < _KNOWN:
                return person
        address = request.client.host if request.client else ""
        # Wrong links from an address do not shut out people who were known before.
        if person is None:
            self._check_rate(address, now)
        found = None
        if token.isascii() and 0 < len(token) <= _LONGEST_TOKEN:
            found = self._service.person_of_token(token)
        with self._lock:
            self._known.pop(key, None)
            if found is not None:
                if len(self._known) >= _ADDRESSES:
                    self._known.clear()
                self._known[key] = now, found
            else:
                self._wrong.setdefault(address, []).append(now)
        return found

    def _check_rate(self, address: str, now: float) -> None:
        with self._lock:
            if len(self._wrong) >= _ADDRESSES:
                self._wrong.clear()
            recent = [at for at in self._wrong.get(address, ()) if now - at < _WINDOW]
            if recent:
                self._wrong[address] = recent
            else:
                self._wrong.pop(address, None)
        if len(recent) >= _WRONG:
            raise ProblemError(
                429,
                "too many wrong personal links came from your address; wait a minute, then "
                "open your personal link again",
            )


def bearer_of(header: str | None) -> str | None:
    """Return the token of a header `Authorization: Bearer TOKEN`.

    None where the header is missing or of another kind: a proxy in front may ask for a password of
    its own, which browsers then send on.
    """
    scheme, _, token = (header or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
