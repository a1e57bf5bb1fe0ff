"""Feature memories that several ranks share: everything as in one process that holds all."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from reid_kernels import NotFiniteError
from torch import Tensor

from fastreid_al.distributed import world as ranks_module
from fastreid_al.distributed.world import SINGLE_PROCESS, Sharded, World
from fastreid_al.memory import ClusterMemory, FeatureMemory, InstanceMemory
from tests.support.process_pool import Pool

SIZES = [1, 2, 3, 4]
DIM = 6
#: Rows of a batch, for each of the domains.
BATCH = 12
IDENTITIES = torch.tensor([0, 1, 2, 0, 3, 4, 1, 0, 2, 2, 4])


class Case(NamedTuple):
    """A memory and what it goes through.

    Args:
        kind: "instance", "cluster" or "hardest".
        source: Whether there is one.
        dtype: Of all vectors.
        epochs: The classes of each epoch.
        temperature: tau.
    """

    kind: str
    source: bool
    dtype: torch.dtype
    epochs: list[list[int]]
    temperature: float = 0.05

    def memory(self, world: World) -> FeatureMemory:
        source = IDENTITIES if self.source else None
        if self.kind == "instance":
            return InstanceMemory(0.2, self.temperature, source, world)
        return ClusterMemory(0.1, self.temperature, self.kind == "hardest", source, world)

    @property
    def n(self) -> int:
        return len(self.epochs[0])

    def rows(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return F.normalize(torch.randn(count, DIM, generator=generator, dtype=torch.float64)).to(
            self.dtype
        )

    def batch(self, classes: Tensor, seed: int) -> list[Tensor]:
        """Rows of the target, then of the source: any that have a class, many of them several
        times.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = (classes >= 0).nonzero()[:, 0]
        out = [drawn[torch.randint(len(drawn), (BATCH,), generator=generator)]]
        if self.source:
            out.append(self.n + torch.randint(len(IDENTITIES), (BATCH,), generator=generator))
        return out


def mixed(n: int, seed: int) -> list[int]:
    """Classes of many sizes, most of one image, and images of none."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-2, n, (n,), generator=generator).pow(2) // n - 1
    return (drawn.unique(return_inverse=True)[1] - int((drawn < 0).any())).tolist()


N = 23
#: No class twice; fewer classes than ranks; all images but one in a class; two images of a class
#: and no others.
LAYOUTS = [
    mixed(N, 0),
    list(range(N)),
    mixed(N, 1),
    [0] * 9 + [1] * 14,
    [0] * (N - 1) + [1],
    [1] + [-1] * (N - 2) + [0],
]


def part_of(world: World, parts: list[Tensor]) -> Tensor:
    """This rank's rows of a batch: of the target's half and of the source's."""
    return torch.cat([part.chunk(world.size)[world.rank] for part in parts])


def whole_bank(world: World, memory: FeatureMemory) -> Tensor:
    bank = memory.state_dict()["bank"]
    assert isinstance(bank, Sharded) == (world.size > 1)
    return world.all_gather_rows(bank.rows) if isinstance(bank, Sharded) else bank


def epoch_of(
    world: World, case: Case, alone: FeatureMemory, shared: FeatureMemory, epoch: int
) -> None:
    """One epoch of both memories, which agree at every step."""
    tight = (
        {"rtol": 1e-12, "atol": 1e-12}
        if case.dtype == torch.float64
        else {"rtol": 1e-5, "atol": 1e-6}
    )
    classes, own = torch.tensor(case.epochs[epoch]), world.local_slice(case.n)
    features = case.rows(case.n, 100 + epoch)
    if isinstance(alone, InstanceMemory) and isinstance(shared, InstanceMemory):
        features = alone.features(case.n)
        assert torch.equal(shared.features(case.n), features[own])
    alone.begin_epoch(features, classes)
    shared.begin_epoch(features[own], classes)
    assert torch.equal(shared.classes, alone.classes)
    for step in range(2):
        rows = case.batch(classes, 10 * epoch + step)
        x = case.rows(len(rows) * BATCH, 1000 + 10 * epoch + step)
        one = x.clone().requires_grad_()
        mine = part_of(world, list(x.split(BATCH))).requires_grad_()
        expected, got = alone.loss(one, torch.cat(rows)), shared.loss(mine, part_of(world, rows))
        expected.backward()
        got.backward()
        torch.testing.assert_close(
            world.all_reduce_sum(got.detach()) / world.size, expected.detach(), **tight
        )
        slopes = part_of(world, list(one.grad.split(BATCH)))
        torch.testing.assert_close(mine.grad / world.size, slopes, **tight)
        alone.update(x, torch.cat(rows))
        shared.update(mine, part_of(world, rows))
    assert torch.equal(whole_bank(world, shared), alone.bank)


def both(world: World, case: Case) -> tuple[FeatureMemory, FeatureMemory]:
    memories = case.memory(SINGLE_PROCESS), case.memory(world)
    for memory in memories:
        features, beside = case.rows(case.n, 1), case.rows(len(IDENTITIES), 2)
        memory.start(features[memory.world.local_slice(case.n)])
        if case.source:
            memory.start_source(beside[memory.world.local_slice(len(beside))])
    return memories


def trained(world: World, case: Case) -> list[int]:
    """Rows of this rank's bank in each epoch."""
    alone, shared = both(world, case)
    held = []
    for epoch in range(len(case.epochs)):
        epoch_of(world, case, alone, shared, epoch)
        held.append(len(shared.bank))
        assert (
            shared.bank.untyped_storage().nbytes() == len(shared.bank) * DIM * shared.bank.itemsize
        )
    return held


@pytest.mark.parametrize(
    ("size", "dtype"), [*((size, torch.float64) for size in SIZES), (3, torch.float32)]
)
@pytest.mark.parametrize("source", [False, True])
@pytest.mark.parametrize("kind", ["instance", "cluster", "hardest"])
def test_ranks_that_share_a_memory_do_what_one_process_does(
    pool: Pool, size: int, dtype: torch.dtype, source: bool, kind: str
) -> None:
    held = pool.run(trained, size, Case(kind, source, dtype, LAYOUTS))
    for epoch, layout in enumerate(LAYOUTS):
        beside = int(IDENTITIES.max() + 1) * source
        count = max(layout) + 1
        rows = (N if kind == "instance" else count) + beside
        # Both domains' centroids are cut for themselves.
        more = max(layout.count(c) for c in range(count)) - 1 if kind == "instance" else int(source)
        assert sum(of_rank[epoch] for of_rank in held) == rows
        assert max(of_rank[epoch] for of_rank in held) <= -(-rows // size) + more


@pytest.mark.parametrize("kind", ["instance", "cluster"])
def test_fewer_images_than_ranks(pool: Pool, kind: str) -> None:
    for source in (False, True):
        pool.run(trained, 4, Case(kind, source, torch.float64, [[0, 1], [0, 0], [-1, 0]]))


def with_others(world: World) -> None:
    """A batch of which some images have no class, most of them on one rank."""
    case = Case("instance", False, torch.float64, [[0, 1, -1, 2, 2]])
    alone, shared = both(world, case)
    for memory in (alone, shared):
        memory.begin_epoch(memory.bank, torch.tensor(case.epochs[0]))
    rows, x = torch.tensor([0, 1, 4, 2, 2, 2]), case.rows(6, 7)
    one, mine = x.clone().requires_grad_(), part_of(world, [x]).requires_grad_()
    expected, got = alone.loss(one, rows), shared.loss(mine, part_of(world, [rows]))
    expected.backward()
    got.backward()
    torch.testing.assert_close(world.all_reduce_sum(got.detach()) / world.size, expected.detach())
    torch.testing.assert_close(mine.grad / world.size, part_of(world, [one.grad]))
    with torch.no_grad():
        assert torch.equal(shared.loss(mine, part_of(world, [rows])), got)


def test_the_mean_is_over_the_images_of_the_batch_that_have_a_class(pool: Pool) -> None:
    for size in (2, 3):
        pool.run(with_others, size)


def confident(world: World) -> None:
    alone, shared = both(world, Case("cluster", False, torch.float32, [list(range(20))], 0.02))
    features = torch.eye(20)[:, :DIM] + torch.eye(20).flip(1)[:, :DIM]
    features[6:14] = torch.eye(8)[:, :DIM] * 3 + 1
    features = F.normalize(features)
    for memory in (alone, shared):
        memory.begin_epoch(features[memory.world.local_slice(20)], torch.arange(20))
    rows = torch.arange(20)[: 5 * world.size]
    expected = F.cross_entropy(features[rows].double() @ alone.bank.double().T / 0.02, rows)
    got = (
        world.all_reduce_sum(shared.loss(part_of(world, [features[rows]]), part_of(world, [rows])))
        / world.size
    )
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)


def test_small_losses_do_not_cancel(pool: Pool) -> None:
    for size in (2, 4):
        pool.run(confident, size)


def saved(world: World, case: Case) -> tuple[Tensor, Tensor]:
    alone, shared = both(world, case)
    epoch_of(world, case, alone, shared, 0)
    return whole_bank(world, shared), shared.classes


def continued(world: World, case: Case, bank: Tensor, classes: Tensor, sharded: bool) -> None:
    alone, shared = case.memory(SINGLE_PROCESS), case.memory(world)
    alone.load_state_dict({"bank": bank.clone(), "classes": classes})
    own = Sharded(bank[world.local_slice(len(bank))], len(bank)) if sharded else bank.clone()
    shared.load_state_dict({"bank": own, "classes": classes})
    rows = case.batch(classes[: case.n], 5)
    x = case.rows(len(rows) * BATCH, 6)
    expected = alone.loss(x, torch.cat(rows))
    got = shared.loss(part_of(world, list(x.split(BATCH))), part_of(world, rows))
    torch.testing.assert_close(
        world.all_reduce_sum(got) / world.size, expected, rtol=1e-12, atol=1e-12
    )
    epoch_of(world, case, alone, shared, 1)


@pytest.mark.parametrize("kind", ["instance", "cluster"])
@pytest.mark.parametrize("source", [False, True])
def test_what_some_ranks_save_others_load(pool: Pool, kind: str, source: bool) -> None:
    case = Case(kind, source, torch.float64, LAYOUTS[2:4])
    for size, others in ((1, 3), (2, 4), (3, 1)):
        answers = pool.run(saved, size, case)
        assert all(torch.equal(bank, answers[0][0]) for bank, _ in answers)
        pool.run(continued, others, case, *answers[0], others != 4)


def before_the_first_epoch(world: World) -> None:
    for kind in ("instance", "cluster"):
        case = Case(kind, False, torch.float64, LAYOUTS[:1])
        alone, shared = both(world, case)
        again = case.memory(world)
        again.load_state_dict(shared.state_dict())
        assert len(again.bank) == 0
        again.start(case.rows(case.n, 1)[world.local_slice(case.n)])
        epoch_of(world, case, alone, again, 0)


def test_a_memory_that_has_begun_no_epoch_saves_nothing(pool: Pool) -> None:
    pool.run(before_the_first_epoch, 2)


def diverged(world: World, where: str) -> list[str]:
    case = Case("cluster", False, torch.float32, LAYOUTS[1:2])
    _, shared = both(world, case)
    features = case.rows(N, 3)
    shared.begin_epoch(features[world.local_slice(N)], torch.arange(N))
    x = features[: 2 * world.size]
    # One rank alone sees it: the owner of a vector, or who computed the feature.
    if where == "bank" and world.rank == world.size - 1:
        shared.bank[0, 0] = torch.nan
    if where == "features":
        x[0] = torch.inf
    said = []
    for call in (shared.loss, shared.update):
        try:
            call(part_of(world, [x]), part_of(world, [torch.arange(len(x))]))
        except NotFiniteError as error:
            said.append(str(error))
    return said


def test_vectors_that_are_not_finite_stop_all_ranks(pool: Pool) -> None:
    for where, count in (("bank", 1), ("features", 2)):
        answers = pool.run(diverged, 3, where)
        assert answers == [answers[0]] * 3
        assert len(answers[0]) == count and all("not finite" in line for line in answers[0])


def begun_with_a_broken_row(world: World) -> str:
    case = Case("cluster", False, torch.float32, LAYOUTS[1:2])
    _, shared = both(world, case)
    features = case.rows(N, 3)
    features[0, 0] = torch.nan
    try:
        shared.begin_epoch(features[world.local_slice(N)], torch.arange(N))
    except ValueError as error:
        return str(error)
    return ""


def test_an_epoch_of_features_that_are_not_finite_begins_on_no_rank(pool: Pool) -> None:
    answers = pool.run(begun_with_a_broken_row, 3)
    assert answers == [answers[0]] * 3 and "not finite" in answers[0]


def few_columns(world: World) -> None:
    kept, ranks_module._MOVED = ranks_module._MOVED, 2 * N // world.size
    try:
        for kind in ("instance", "cluster"):
            trained(world, Case(kind, True, torch.float64, LAYOUTS[:3]))
    finally:
        ranks_module._MOVED = kept


def test_vectors_that_move_some_columns_at_a_time_are_the_same(pool: Pool) -> None:
    pool.run(few_columns, 3)
