"""The people of a ledger: who they are, their tokens, and who is here."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import cast, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from ..errors import LedgerError, SettingError, printable
from .database import PEOPLE
from .tasks import Person, PersonRole

#: A person who did nothing for so long is not here.
HERE_SECONDS = 600.0
#: A person who did nothing for so many seconds does not keep a question, although the page is open.
AWAY_SECONDS = 180.0
#: What a person did is written at most every so many seconds: a page that waits asks every second.
_WRITE_EVERY = 15.0
#: Roles that decide where people disagree.
REVIEWERS = ("review", "admin")
_LONGEST_NAME = 100
_ROLES = get_args(PersonRole)


def make_person(
    connection: Connection, name: str, role: str, now: float, token: str | None = None
) -> Person:
    """Write a person into a ledger.

    Args:
        connection: A transaction that writes.
        name: Name of the person.
        role: What the person may do.
        now: The time.
        token: The person's token, of which a digest is kept; None for a person without one.

    Raises:
        LedgerError: The name or the role cannot be used, or the name is taken.
    """
    name = check_name(name)
    if role not in _ROLES:
        raise LedgerError(f"got role {printable(str(role))}, expected one of {', '.join(_ROLES)}")
    if find_person(connection, name) is not None:
        raise LedgerError(f"there is a person {printable(name)} already; choose another name")
    secret = None if token is None else digest_of(token)
    values = {"name": name, "role": role, "secret": secret, "made_at": now}
    key = connection.execute(PEOPLE.insert(), values).inserted_primary_key
    assert key is not None
    return Person(key[0], name, cast(PersonRole, role))


def parse_people(text: str | None, setting: str = "people") -> dict[str, str]:
    """Return the role of each person by name.

    Args:
        text: Names with commas between, each with `:ROLE` or without; None for nobody.
        setting: Name of the setting, for an error.

    Raises:
        LedgerError: A name cannot be used.
        SettingError: A role is unknown.
    """
    found = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, role = part.strip().partition(":")
        if role not in ("", *_ROLES):
            raise SettingError(setting, text, f"NAME or NAME:ROLE, a role of {', '.join(_ROLES)}")
        found[check_name(name.strip())] = role or "annotate"
    return found


def check_name(name: object) -> str:
    """Return the name of a person.

    Raises:
        LedgerError: It cannot be used.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME:
        raise LedgerError(
            f"got a name of {len(name) if isinstance(name, str) else 0} characters, expected text "
            f"of 1 to {_LONGEST_NAME}"
        )
    if name != name.strip() or not name.isprintable():
        raise LedgerError(
            f"got the name {printable(name)!r}, expected one of printable characters without "
            "spaces around it"
        )
    return name


def find_person(connection: Connection, name: str) -> Person | None:
    """Return the person of a name."""
    columns = PEOPLE.c.id, PEOPLE.c.name, PEOPLE.c.role
    row = connection.execute(sa.select(*columns).where(PEOPLE.c.name == name)).first()
    return None if row is None else Person(*row)


def admit(connection: Connection, person: Person, now: float, idle: float = 0.0) -> Person:
    """Return a person as the ledger knows them now, and note when they did something last.

    Args:
        connection: A transaction that writes.
        person: The person.
        now: The time in unix seconds.
        idle: Seconds since the person did something, such as pressing a key. An open page that
            nobody uses asks for questions too, and makes nobody present.

    Raises:
        LedgerError: There is no such person, or they may not answer any more.
    """
    c = PEOPLE.c
    columns = c.id, c.name, c.role, c.disabled_at, c.seen_at
    number = person.id if isinstance(person, Person) and type(person.id) is int else -1
    row = connection.execute(sa.select(*columns).where(PEOPLE.c.id == number)).first()
    if row is None:
        raise LedgerError(f"there is no person {number}; ask for a new link")
    if row.disabled_at is not None:
        raise LedgerError(f"{printable(row.name)} may not answer any more; ask who manages people")
    acted = now - idle
    # A time after now was written by a clock that was set back since.
    if row.seen_at is None or acted >= row.seen_at + _WRITE_EVERY or row.seen_at > now:
        connection.execute(PEOPLE.update().where(c.id == row.id), {"seen_at": acted})
    return Person(row.id, row.name, row.role)


def person_of_token(connection: Connection, token: object) -> Person | None:
    """Return the person whose token it is; None for an unknown one or a disabled person."""
    if not isinstance(token, str) or not token:
        return None
    columns = PEOPLE.c.id, PEOPLE.c.name, PEOPLE.c.role, PEOPLE.c.secret
    known = PEOPLE.c.secret.is_not(None) & PEOPLE.c.disabled_at.is_(None)
    digest = digest_of(token)
    found = None
    # All are compared, each in constant time: the time tells nothing about tokens.
    for row in connection.execute(sa.select(*columns).where(known)):
        if hmac.compare_digest(str(row.secret).encode(), digest.encode()):
            found = Person(row.id, row.name, row.role)
    return found


def present(connection: Connection, now: float) -> set[int]:
    """Return the numbers of the people who are here."""
    seen = PEOPLE.c.seen_at
    here = (seen > now - HERE_SECONDS) & (seen < now + HERE_SECONDS)
    wanted = sa.select(PEOPLE.c.id).where(here & PEOPLE.c.disabled_at.is_(None))
    return set(connection.execute(wanted).scalars())


def new_token() -> str:
    """Return a token of 192 random bits."""
    return secrets.token_urlsafe(24)


def digest_of(token: str) -> str:
    """Return what is kept of a token: SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
