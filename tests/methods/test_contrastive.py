"""The clustering methods on several ranks: labels, losses, errors and questions are those of one
process.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreid_al.active import QuestionRounds
from fastreid_al.annotators import Oracle
from fastreid_al.answers import Asker, QuitAsking
from fastreid_al.config import BatchConfig, ClusterConfig, MemoryConfig, QuestionConfig
from fastreid_al.distributed.world import SINGLE_PROCESS, World
from fastreid_al.engine.stop_signal import Interrupted
from fastreid_al.errors import TrainingError
from fastreid_al.methods import UCAL, Supervised
from fastreid_al.methods.adaptation import Source
from fastreid_al.methods.collective_questions import CollectiveQuestions
from tests.support.features import clustered_features
from tests.support.process_pool import Pool

N, M = 61, 30
TARGET = F.normalize(torch.from_numpy(clustered_features(N, 6, spread=0.6)).double())
BESIDE = F.normalize(torch.from_numpy(clustered_features(M, 5, spread=0.6, seed=3)).double())
IDENTITIES = torch.arange(N) % 6
SOURCE = Source(torch.arange(M) % 5, torch.arange(M) // 10)
BATCH = BatchConfig(size=12, per_identity=3, iterations=2)


class Labelled(UCAL):
    """UCAL whose clusters need no clustering: those of the images' numbers, but for some."""

    def assign(self, epoch: int, features: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.where(torch.arange(N) % 7 == epoch, -1, IDENTITIES)
        labels = self.refine(epoch, features, labels)
        return labels, labels


def labelled(kind: str, world: World, questions: QuestionRounds | None = None) -> UCAL:
    cluster = ClusterConfig(source="extract" if kind == "cluster" else "memory")
    memory = MemoryConfig(kind=kind)  # type: ignore[arg-type]
    cameras = torch.arange(N) % 4
    collective = CollectiveQuestions(questions, world)
    return Labelled(cameras, cluster, BATCH, memory, 0, collective, SOURCE, world)


def trained(world: World, kind: str) -> None:
    pair = labelled(kind, SINGLE_PROCESS), labelled(kind, world)
    for epoch in range(2):
        facts = []
        for method in pair:

            def extract(domain: str = "target", own: World = method.world) -> Tensor:
                whole = BESIDE if domain == "source" else TARGET
                return whole[own.local_slice(len(whole))]

            facts.append(method.label_images(epoch, extract))
        assert facts[0] == facts[1]
        for step, (rows, same) in enumerate(
            zip(*(method.batches(epoch) for method in pair), strict=True)
        ):
            assert torch.equal(rows, same)
            x = (
                3
                * torch.randn(
                    24, TARGET.shape[1], generator=torch.Generator().manual_seed(step)
                ).double()
            )

            def part(whole: Tensor) -> Tensor:
                return torch.cat([half.chunk(world.size)[world.rank] for half in whole.chunk(2)])

            one, mine = x.clone().requires_grad_(), part(x).requires_grad_()
            losses = pair[0].loss(one, rows), pair[1].loss(mine, part(rows))
            for loss in losses:
                loss.backward()
            torch.testing.assert_close(
                world.all_reduce_sum(losses[1].detach()) / world.size, losses[0].detach()
            )
            torch.testing.assert_close(mine.grad / world.size, part(one.grad))
            pair[0].update(x, rows)
            pair[1].update(mine, part(rows))
        assert pair[0].label_metrics(IDENTITIES) == pair[1].label_metrics(IDENTITIES)
    states = [method.state_dict() for method in pair]
    assert torch.equal(states[0]["labels"], states[1]["labels"])
    assert torch.equal(
        states[1]["memory"]["bank"].rows, world.local_rows(states[0]["memory"]["bank"])
    )


@pytest.mark.parametrize("kind", ["instance", "cluster"])
@pytest.mark.parametrize("size", [2, 3])
def test_an_epoch_on_several_ranks_is_that_of_one(pool: Pool, size: int, kind: str) -> None:
    pool.run(trained, size, kind)


def refused(world: World, what: str) -> str:
    features = TARGET.clone()
    if what == "not finite":
        features[-1] = torch.nan
    if what == "collapsed":
        features = features[:1].expand(N, -1)
    images = 2 if what == "few" else N
    method = Supervised(
        IDENTITIES[:images], torch.zeros(images, dtype=torch.int64), BATCH, MemoryConfig(), 0, world
    )
    try:
        return str(
            method.label_images(0, lambda: features[:images][world.local_slice(images)])["classes"]
        )
    except TrainingError as error:
        return str(error)


def test_what_stops_one_process_stops_all_ranks_alike(pool: Pool) -> None:
    for what, said in (
        ("not finite", "of 1 of 61 images"),
        ("collapsed", "all 61 images"),
        ("few", "2"),
        ("", "6"),
    ):
        answers = pool.run(refused, 4, what)
        assert answers == [refused(SINGLE_PROCESS, what)] * 4
        assert said in answers[0]


def test_half_floats_of_autocast_are_contrasted_in_the_memorys_dtype() -> None:
    method = Supervised(IDENTITIES, torch.zeros(N, dtype=torch.int64), BATCH, MemoryConfig(), 0)
    method.label_images(0, TARGET.float)
    rows, x = torch.arange(12), TARGET[:12].bfloat16()
    half, full = x.clone().requires_grad_(), x.float().requires_grad_()
    losses = method.loss(half, rows), method.loss(full, rows)
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert torch.equal(half.grad, full.grad.bfloat16())
    method.update(x, rows)
    assert method.memory.bank.dtype == torch.float32


def asked(world: World) -> tuple[list[int], dict[str, float], bool]:
    settings = QuestionConfig(start=1, per_epoch=5)
    questions = (
        QuestionRounds(Asker(Oracle(torch.arange(N) % 4)), "gain", settings)
        if world.is_first
        else None
    )
    method = labelled("instance", world, questions)
    for epoch in range(2):
        facts = method.label_images(epoch, lambda domain="target": _own(world, domain))
    return (
        method.labels.tolist(),
        {k: v for k, v in facts.items() if "seconds" not in k},
        method.labels_before_questions is not None,
    )


def _own(world: World, domain: str) -> Tensor:
    whole = BESIDE if domain == "source" else TARGET
    return whole[world.local_slice(len(whole))]


def test_the_first_rank_asks_and_all_learn_the_answers(pool: Pool) -> None:
    alone = asked(SINGLE_PROCESS)
    assert alone[1]["questions"] == 5 and alone[2]
    assert pool.run(asked, 3) == [alone] * 3


class Leaves:
    """Questions of which the first raises."""

    config = QuestionConfig(start=0)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def refine(self, *_: object) -> None:
        raise self.error


def left(world: World, error: BaseException) -> tuple[str, str]:
    method = labelled("instance", world, Leaves(error))  # type: ignore[arg-type]
    try:
        method.label_images(0, lambda domain="target": _own(world, domain))
    except (QuitAsking, Interrupted, TrainingError) as raised:
        return type(raised).__name__, str(raised.__dict__ or raised)
    return "", ""


def test_who_leaves_leaves_on_all_ranks(pool: Pool) -> None:
    for error in (QuitAsking("the annotator left"), Interrupted(15), TrainingError("no")):
        assert (
            pool.run(left, 3, error) == [(type(error).__name__, str(error.__dict__ or error))] * 3
        )
