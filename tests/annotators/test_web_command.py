"""The web annotator finds out whether a page is served already."""

from __future__ import annotations

import time
from pathlib import Path

from fastreid_al.annotators.web import Web
from fastreid_al.answers.database import PEOPLE
from fastreid_al.answers.ledger import Ledger
from fastreid_al.config import WebConfig
from tests.answers.conftest import database, server

__all__ = ["database", "server"]


def test_a_page_that_is_served_is_found_in_a_database_with_a_password(
    database: str,
) -> None:
    url = database.replace("://anna@", "://anna:secret@")
    assert url != database
    with Ledger.open(url) as ledger, Ledger.open(url, role="server"):
        assert "secret" not in ledger.name
        assert ledger.store.url == url
        web = Web("run", WebConfig())
        # Nothing is started beside the page that is there.
        web.start(ledger)
        assert web.people == 1
        web.close()


def test_people_with_a_link_are_expected_until_somebody_has_come(tmp_path: Path) -> None:
    url = str(tmp_path / "answers.sqlite")
    with Ledger.open(url) as ledger, Ledger.open(ledger.store.url, role="server") as served:
        web = Web("run", WebConfig(people="anna,ben:admin,cleo"))
        web.start(ledger)
        assert web.people == 3
        now = time.time()
        anna = {"name": "anna", "role": "annotate", "made_at": now, "seen_at": now}
        with served.store.writing() as connection:
            connection.execute(PEOPLE.insert(), anna)
        web.start(ledger)
        assert web.people == 1
        with served.store.writing() as connection:
            connection.execute(PEOPLE.update(), {"seen_at": now - 3600})
        web.start(ledger)
        assert web.people == 1
        web.close()
