"""People and known answers that a page is started with."""

from __future__ import annotations

from pathlib import Path

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService
from fastreid_al.server.roster import add_known_answers
from tests.support.ledgers import keys
from tests.support.queues import answer_next, publish


def test_nothing_that_is_shown_tells_a_question_with_a_known_answer(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    known = tmp_path / "gold.csv"
    known.write_text("left,right,verdict\ntrain/4.jpg,train/5.jpg,same\n")
    with Ledger.open(str(file), keys()) as ledger:
        publish(ledger, [(4, 6), (5, 7)], reason="merge")
        assert add_known_answers(str(file), known) == 1
        with AnswerService(ledger, gold_share=1) as service:
            anna = service.person_named("anna")
            task = answer_next(service, anna)
            assert (task.id, task.reason, task.number) == (3, "merge", 1)
        assert ledger.answers() == []
