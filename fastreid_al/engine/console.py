"""What a run prints: lines, warnings, tables and progress bars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..data.pixels import BadImage
from ..errors import one_line, printable

T = TypeVar("T")

#: Unreadable images that are listed by name.
_BAD_SHOWN = 10
#: Seconds between two lines of progress where the output is not a terminal.
_QUIET_SECONDS = 60


class Reporter:
    """Prints plain lines, and progress bars where the output is a terminal.

    Args:
        console: Where to print; standard output when not given.
        wording: Changes each line before it is printed. The command line uses it to name settings
            by their options; lines stay as they are when it is not given.
    """

    def __init__(
        self, console: Console | None = None, wording: Callable[[str], str] | None = None
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, emoji=False)
        self._wording = wording

    def line(self, text: str) -> None:
        """Print one line at once; characters that a terminal would not show are escaped."""
        text = one_line(text)
        text = self._wording(text) if self._wording else text
        # A name may hold characters that the encoding of the terminal lacks.
        encoding = self.console.encoding
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.line(f"warning: {text}")

    def attempt(self, what: str, action: Callable[[], object]) -> bool:
        """Do what a command is complete without; a failure of it is a warning.

        Args:
            what: What the action makes, such as "the figure".
            action: The action.

        Returns:
            Whether it was done.
        """
        try:
            action()
        except Exception as error:  # drawing and its fonts fail in many ways
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            self.warn(f"{what} could not be made ({reason}); all else is complete")
            return False
        return True

    def bad_images(self, split: str, bad: list[BadImage]) -> None:
        """Name and count the images of a split that are left out because they could not be read."""
        if bad:
            self.warn(f"{len(bad)} {split} image(s) could not be read and are left out:")
            for image in bad[:_BAD_SHOWN]:
                self.line(f"  {printable(image.path)}: {image.reason}")
            if len(bad) > _BAD_SHOWN:
                self.line(f"  ... and {len(bad) - _BAD_SHOWN} more")

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """Show the progress of a long phase: a bar on a terminal, elsewhere a line a minute.

        Args:
            what: Name of the phase.
            total: Items in all, as far as known.

        Yields:
            A function to call with (items done, items in all).
        """
        if not self.console.is_terminal:
            yield self._line_a_minute(what)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done, all_: bar.update(task, completed=done, total=all_)

    def _line_a_minute(self, what: str) -> Callable[[int, int], None]:
        last_line = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last_line
            if time.monotonic() - last_line >= _QUIET_SECONDS:
                last_line = time.monotonic()
                self.line(f"  {what}: {done:,} of {total:,}")

        return update

    def track(self, what: str, items: Iterable[T], total: int, done: int = 0) -> Iterator[T]:
        """Iterate over items and show the progress.

        Args:
            what: Name of the phase.
            items: The items.
            total: Items in all, those that were done before included.
            done: Items that were done before.
        """
        with self.progress(what, total) as update:
            for number, item in enumerate(items, done):
                update(number, total)
                yield item

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a table, its first column aligned to the left and the others to the right.

        Args:
            title: Title above the table.
            columns: Heads of the columns.
            rows: Cells of each row.
        """
        table = Table(title=Text(one_line(title)), title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        self.console.print(table)


def percent(value: float | None) -> str:
    """Format a share as per cent with one decimal, and None as a dash."""
    return "-" if value is None else f"{100 * value:.1f}"
