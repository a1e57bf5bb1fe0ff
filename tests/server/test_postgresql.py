"""The page on a database server that goes away."""

from __future__ import annotations

from pathlib import Path

from tests.answers.conftest import database, server
from tests.server.conftest import TASKS
from tests.server.test_app import next_task, send
from tests.support.labelling import Site

__all__ = ["database", "server"]


def test_the_page_is_told_that_the_ledger_is_away_and_sends_again(
    database: str, tmp_path: Path
) -> None:
    import psycopg

    site = Site(tmp_path, TASKS, url=database, local="anna")
    client = site.client()
    task = next_task(client)
    with psycopg.connect(database, autocommit=True) as other:
        others = "pid <> pg_backend_pid() AND datname = current_database()"
        other.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    replies = [send(client, task) for _ in range(3)]
    # What was in flight is not acknowledged; what is sent again is written, once.
    assert replies[0].status_code == 503
    assert "lost" in replies[0].json()["error"]
    assert [reply.json()["status"] for reply in replies[1:]] == ["recorded", "repeated"]
    assert len(site.events()) == 1
    site.close()
