"""The web annotator finds out whether a page is served already."""

from __future__ import annotations

from fastreid_al.annotators.web import Web
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
