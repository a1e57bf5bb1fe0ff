"""Listens on an address, and runs the annotation server until Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from ..answers.service import AnswerService
from ..errors import LedgerError, SettingError
from .app import Closing

#: Seconds that requests have to end after Ctrl-C.
_PATIENCE = 3
_BACKLOG = 128
_SETTLE_SECONDS = 30.0


class Address:
    """A socket that listens.

    It is bound before anything else is opened, so that a port that is taken is said at once.

    Args:
        host: Name or address to listen on.
        port: Port; 0 for any that is free.

    Raises:
        SettingError: The host is unknown, or the port is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except (OSError, UnicodeError) as error:
            raise SettingError("host", host, "a name or an address of this machine") from error
        self.socket = socket.socket(family, kind, protocol)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(where)
            self.socket.listen(_BACKLOG)
        except OSError as error:
            self.socket.close()
            if error.errno == errno.EADDRNOTAVAIL:
                raise SettingError("host", host, "an address of this machine") from error
            reason = error.strerror or str(error)
            raise SettingError("port", port, f"a port that is free ({reason})") from error
        #: The port, also where any was asked for.
        self.port: int = self.socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Address of the page."""
        name = self.host
        if name in ("127.0.0.1", "::1"):
            name = "localhost"
        elif name in ("", "0.0.0.0", "::"):  # noqa: S104
            name = socket.gethostname()
        return f"http://[{name}]:{self.port}" if ":" in name else f"http://{name}:{self.port}"

    def __enter__(self) -> Address:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()


class _Server(uvicorn.Server):
    """Ends what waits and what streams at the first Ctrl-C."""

    def __init__(self, config: uvicorn.Config, closing: Closing) -> None:
        super().__init__(config)
        self._closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Remember that a signal came."""
        self._closing.closed = True
        super().handle_exit(sig, frame)


@contextlib.contextmanager
def settling(service: AnswerService, every: float = _SETTLE_SECONDS) -> Iterator[None]:
    """Settle questions whose people have left, again and again, until the block ends.

    A request does the same, but if everybody has left, there is none, and the run would wait.

    Args:
        service: The service.
        every: Seconds between two times.
    """
    done = threading.Event()

    def settle() -> None:
        while not done.wait(every):
            # If the ledger is away, whoever answers is told.
            with contextlib.suppress(LedgerError):
                service.settle()

    thread = threading.Thread(target=settle, name="settling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def serve(
    make: Callable[[Closing], Starlette], address: Address, open_url: str | None = None
) -> None:
    """Serve an application until SIGINT or SIGTERM.

    Args:
        make: Makes the application, given what says when the server is about to end.
        address: Where it listens.
        open_url: Address that is opened in a browser; None for none.
    """
    closing = Closing()
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        make(closing),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE,
        lifespan="off",
    )
    if open_url is not None:
        threading.Thread(target=webbrowser.open, args=(open_url,), daemon=True).start()
    # uvicorn raises the signal again when it has ended: the caller goes on instead.
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, closing).run(sockets=[address.socket])
