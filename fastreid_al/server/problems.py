"""A request that cannot be answered, as status and one line."""

from __future__ import annotations

from ..errors import one_line


class ProblemError(Exception):
    """A request that cannot be answered.

    Args:
        status: Status of HTTP.
        error: What is wrong and what to do, in one line.
    """

    def __init__(self, status: int, error: str) -> None:
        super().__init__(one_line(error))
        self.status = status
        self.error = one_line(error)
