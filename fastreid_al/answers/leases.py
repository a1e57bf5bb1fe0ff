"""Leases: which task is before which person, and until when."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from .database import LEASES, SKIPS

#: A lease may end so many times its length from now; later ends were written by a clock that was
#: set back since.
_SLACK = 2


class Lease(NamedTuple):
    """A task that was given to a person.

    Args:
        task: Number of its first question.
        person: Number of the person.
        since: When it was given, in unix seconds.
        until: When it ends.
    """

    task: int
    person: int
    since: float
    until: float


class Leases:
    """The leases of a ledger. A lease that ended stays, until the person answers or gives it back.

    Args:
        seconds: How long a lease lasts without a heartbeat.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def is_valid(self, now: float) -> sa.ColumnElement[bool]:
        """Return the condition for leases that last. The clock may have been set back since."""
        until = LEASES.c.until
        return (
            (LEASES.c.since <= now) & (until > now) & (until <= now + _SLACK * self.seconds + 1e-6)
        )

    def lasts(self, lease: Lease, now: float) -> bool:
        """Return whether a lease lasts."""
        return lease.since <= now < lease.until <= now + _SLACK * self.seconds + 1e-6

    def find(self, connection: Connection, task: int, person: int) -> Lease | None:
        """Return the lease of a person on a task, also one that ended."""
        row = connection.execute(
            sa.select(LEASES).where((LEASES.c.question == task) & (LEASES.c.person == person))
        ).first()
        return None if row is None else Lease(*row)

    def held(self, connection: Connection, person: int, now: float) -> list[Lease]:
        """Return the leases of a person that last, the oldest first."""
        wanted = sa.select(LEASES).where((LEASES.c.person == person) & self.is_valid(now))
        ordered = wanted.order_by(LEASES.c.since, LEASES.c.question)
        return [Lease(*row) for row in connection.execute(ordered)]

    def of_tasks(self, connection: Connection, tasks: list[int], now: float) -> dict[int, set[int]]:
        """Return the people who hold each of some tasks."""
        wanted = sa.select(LEASES.c.question, LEASES.c.person).where(
            LEASES.c.question.in_(tasks) & self.is_valid(now)
        )
        found: dict[int, set[int]] = {task: set() for task in tasks}
        for task, person in connection.execute(wanted):
            found[task].add(person)
        return found

    def give(
        self, connection: Connection, task: int, person: int, now: float, *, first: bool = False
    ) -> Lease:
        """Give a task to a person.

        Args:
            connection: A transaction that writes.
            task: The task.
            person: Number of the person.
            now: The time.
            first: Whether it comes before the tasks that the person holds.
        """
        since = now
        if first:
            held = self.held(connection, person, now)
            since = min([now, *(lease.since - 1e-3 for lease in held)])
        self.end(connection, task, person)
        lease = Lease(task, person, since, now + self.seconds)
        values = {"question": task, "person": person, "since": since, "until": lease.until}
        connection.execute(LEASES.insert(), values)
        return lease

    def renew(self, connection: Connection, lease: Lease, now: float) -> Lease:
        """Let a lease last from now on."""
        renewed = lease._replace(since=min(lease.since, now), until=now + self.seconds)
        connection.execute(
            LEASES.update().where(_of(lease.task, lease.person)),
            {"since": renewed.since, "until": renewed.until},
        )
        return renewed

    def end(self, connection: Connection, task: int, person: int) -> None:
        """End the lease of a person on a task."""
        connection.execute(LEASES.delete().where(_of(task, person)))

    def end_all(self, connection: Connection, person: int) -> None:
        """End all leases of a person."""
        connection.execute(LEASES.delete().where(LEASES.c.person == person))


def skip(connection: Connection, task: int, person: int, now: float) -> None:
    """Note that a person wants to see a task after all others."""
    unskip(connection, task, person)
    connection.execute(SKIPS.insert(), {"question": task, "person": person, "at": now})


def unskip(connection: Connection, task: int, person: int) -> None:
    """Forget that a person skipped a task."""
    connection.execute(
        SKIPS.delete().where((SKIPS.c.question == task) & (SKIPS.c.person == person))
    )


def _of(task: int, person: int) -> sa.ColumnElement[bool]:
    return (LEASES.c.question == task) & (LEASES.c.person == person)
