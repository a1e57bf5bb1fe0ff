"""The web annotator: people who answer on a page that a process of its own serves."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence

from ..answers.database import PEOPLE
from ..answers.ledger import Ledger
from ..answers.people import AWAY_SECONDS, parse_people
from ..config import WebConfig
from ..errors import LedgerError, UserError
from .context import AnnotatorContext

#: Seconds between two looks at the ledger while a round waits.
_PAUSE = 0.02
_STOP_SECONDS = 10.0
#: Serves the page, whose lines name the options of the run and not those of the page's own command.
_SERVE = "from fastreid_al.annotate import main_of_run; main_of_run()"
#: Seconds between two looks whether a page that another process served is still there.
_LOOK_EVERY = 3.0


class Web:
    """People who answer on the page of `fastreid-al annotate`, which is a process of its own.

    The page goes on while the run trains, and after a run was killed. A page that is served already
    is used as it is. A page whose process was killed is served again.

    Args:
        target: The run folder, or the URL of the ledger: what the page is about.
        settings: Its address and its people.
    """

    name = "web"

    def __init__(self, target: str, settings: WebConfig) -> None:
        self._command = [sys.executable, "-c", _SERVE, *_options(target, settings)]
        self._server: subprocess.Popen[bytes] | None = None
        #: When another process was last seen to serve the page.
        self._elsewhere_at: float | None = None
        #: People who get a link, or one: they are counted until somebody has used the page.
        self._expected = max(1, len(parse_people(settings.people, "web.people")))
        self._people = self._expected

    @property
    def people(self) -> int:
        """How many people used the page when it was last looked at; at least one.

        Until somebody has used it, those who get a personal link are counted.
        """
        return self._people

    def start(self, ledger: Ledger) -> None:
        """Serve the page, unless it is served already.

        Args:
            ledger: The ledger, which its trainer has open.
        """
        if self._server is None and not self._is_elsewhere():
            try:
                Ledger.open(ledger.store.url, role="server").close()
            except LedgerError as error:
                if "in use" not in str(error):
                    raise
                self._elsewhere_at = time.monotonic()
            else:
                # Ctrl-C is for the run, which ends the page itself.
                self._server = subprocess.Popen(self._command, start_new_session=True)
        self._people = _present(ledger, self._expected)

    def serve(self, ledger: Ledger) -> None:
        """Wait for a moment, in which people may answer.

        Args:
            ledger: The ledger, which its trainer has open.

        Raises:
            UserError: The process of the page has ended.
        """
        self.start(ledger)
        status = None if self._server is None else self._server.poll()
        if status is not None:
            self._server = None
            # A negative status is a signal: the page is served again.
            if status >= 0:
                raise UserError(
                    f"the annotation page ended with status {status}, see above; every answer is "
                    "kept. Resume the run with `resume`"
                )
        time.sleep(_PAUSE)

    def _is_elsewhere(self) -> bool:
        """Whether another process serves the page, by the last look."""
        at = self._elsewhere_at
        return at is not None and time.monotonic() - at < _LOOK_EVERY

    def close(self) -> None:
        """End the page, if this object serves it."""
        if self._server is not None:
            self._server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(_STOP_SECONDS)
            self._server.kill()
            self._server.wait()
            self._server = None


def make_web(context: AnnotatorContext) -> Web:
    """Return the web annotator of a run."""
    return Web(str(context.folder), context.config.web)


def _options(target: str, settings: WebConfig) -> Sequence[str]:
    """The words of the command that serves the page."""
    values = {name: value for name, value in vars(settings).items() if value is not None}
    return [target, *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]


def _present(ledger: Ledger, expected: int) -> int:
    """How many people did something lately, at least one; `expected` if nobody ever did."""
    now = time.time()
    with ledger.store.reading() as connection:
        rows = connection.execute(PEOPLE.select().with_only_columns(PEOPLE.c.seen_at)).scalars()
        seen = [at for at in rows if at is not None]
    return max(1, sum(now - AWAY_SECONDS < at <= now for at in seen)) if seen else expected
