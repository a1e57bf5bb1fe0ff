"""Triggers by which the database itself refuses to change what is history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

#: Stands at the beginning of every refusal.
APPEND_ONLY = "the ledger is append-only"
_FUNCTION = "fastreid_al_append_only"


class _Rule(NamedTuple):
    """What is refused of a table.

    Args:
        name: Name of the trigger.
        table: The table.
        action: What is refused, as a trigger names it.
        of: What is kept, for the message.
        when: Condition on the row as it was, so that the first value may be written; empty for
            every row.
    """

    name: str
    table: str
    action: str
    of: str
    when: str = ""


#: `status` and `settled_event` of a question say where it stands, and are no history.
_QUESTION = (
    "id, run, epoch, left_id, right_id, left_images, right_images, score, similarity, "
    "probability, votes, gold, known_event, made_at"
)
#: What a round that asks an open question again may need to change.
_PURPOSE = "reason, need, confirms"
_RULES = (
    _Rule("events_keep", "events", "UPDATE", "events"),
    _Rule("events_stay", "events", "DELETE", "events"),
    _Rule("images_keep", "images", "UPDATE OF id, path, digest", "path and digest of an image"),
    _Rule("images_stay", "images", "DELETE", "images"),
    _Rule(
        *("images_erased", "images", "UPDATE OF erased_at", "the time of an erasure"),
        when="OLD.erased_at IS NOT NULL",
    ),
    _Rule("questions_keep", "questions", f"UPDATE OF {_QUESTION}", "what was asked"),
    _Rule(
        *("questions_purpose", "questions", f"UPDATE OF {_PURPOSE}", "why a question was asked"),
        when="OLD.status <> 'open'",
    ),
    _Rule("questions_stay", "questions", "DELETE", "questions"),
    _Rule("people_keep", "people", "UPDATE OF id, name", "names of people"),
    _Rule("people_stay", "people", "DELETE", "people"),
)
_TABLES = tuple(dict.fromkeys(rule.table for rule in _RULES))


def protect(connection: Connection) -> None:
    """Have the database refuse to change events, images, questions and names of people.

    It does nothing where all triggers are there.

    Args:
        connection: A transaction that writes, in a ledger of format 2.
    """
    missing = set(unprotected(connection))
    if not missing:
        return
    is_sqlite = connection.dialect.name == "sqlite"
    if not is_sqlite:
        connection.exec_driver_sql(_POSTGRESQL_FUNCTION)
    for name, statement in _statements(is_sqlite).items():
        if name in missing:
            connection.exec_driver_sql(statement)


def unprotected(connection: Connection) -> list[str]:
    """Return the names of the triggers that are missing.

    Args:
        connection: A transaction that reads, in a ledger of format 2.
    """
    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:
        found = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    else:
        # A trigger that is switched off ("D") refuses nothing.
        found = connection.execute(
            sa.text(
                "SELECT tgname FROM pg_trigger WHERE tgenabled <> 'D' "
                "AND tgrelid IN (SELECT to_regclass(name) FROM unnest(:tables) AS name)"
            ).bindparams(sa.bindparam("tables", list(_TABLES), sa.ARRAY(sa.Text)))
        )
    there = set(found.scalars())
    return [name for name in _statements(is_sqlite) if name not in there]


def _statements(is_sqlite: bool) -> dict[str, str]:
    """The statement that makes each trigger, by its name."""
    if is_sqlite:
        found = {rule.name: _in_sqlite(rule) for rule in _RULES}
        return found | {f"{table}_new": _new_in_sqlite(table) for table in _TABLES}
    found = {rule.name: _in_postgresql(rule) for rule in _RULES}
    return found | {
        f"{table}_full": (
            f"CREATE TRIGGER {table}_full BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION {_FUNCTION}('{table}')"
        )
        for table in _TABLES
    }


def _in_sqlite(rule: _Rule) -> str:
    return _sqlite_trigger(rule.name, rule.action, rule.table, rule.of, rule.when)


def _new_in_sqlite(table: str) -> str:
    # REPLACE deletes a row without the trigger of a deletion. A row without a number has -1 here.
    exists = f"EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)"  # noqa: S608
    return _sqlite_trigger(f"{table}_new", "INSERT", table, table, exists)


def _sqlite_trigger(name: str, action: str, table: str, of: str, when: str) -> str:
    condition = f" WHEN {when}" if when else ""
    return (
        f"CREATE TRIGGER {name} BEFORE {action} ON {table} FOR EACH ROW{condition} "
        f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}: {of} cannot be changed'); END"
    )


def _in_postgresql(rule: _Rule) -> str:
    condition = f" WHEN ({rule.when})" if rule.when else ""
    return (
        f"CREATE TRIGGER {rule.name} BEFORE {rule.action} ON {rule.table} FOR EACH ROW"
        f"{condition} EXECUTE FUNCTION {_FUNCTION}('{rule.of}')"
    )


_POSTGRESQL_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION {_FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION USING MESSAGE = '{APPEND_ONLY}: ' || TG_ARGV[0] || ' cannot be changed';
    END $$
"""


def missing_line(missing: Sequence[str]) -> str:
    """Return what to say of triggers that are missing."""
    return (
        f"the database does not refuse changes of history (no trigger {', '.join(missing)}); "
        "a run or a page that opens the ledger adds them"
    )
