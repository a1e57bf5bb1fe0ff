"""What a page does while it is served."""

from __future__ import annotations

import time

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService
from fastreid_al.server.serve import settling
from tests.support.queues import Clock, answer_next, publish, statuses


def test_a_question_does_not_wait_for_people_when_everybody_has_left() -> None:
    clock = Clock()
    with Ledger.open("sqlite://") as ledger:
        publish(ledger, [(0, 1)], votes=2)
        service = AnswerService(ledger, gold_share=0, clock=clock)
        anna, ben = service.person_named("anna"), service.person_named("ben")
        service.heartbeat(ben, 1)
        answer_next(service, anna)
        assert statuses(ledger) == [("open", None)]
        clock.now += 601
        with settling(service, every=0.001):
            # The connection is the service's while it settles.
            for _ in range(1000):
                if service.progress(anna).open == 0:
                    break
                time.sleep(0.01)
        assert statuses(ledger) == [("answered", 1)]
