"""A whole epoch of UCAL and of NNCT by phases, compared with a plain PyTorch loop in the same run.

Ours is `engine.loop.TrainingLoop` on a run that is assembled as `fastreid_al.train` does it, with
the papers' settings; the phases are those that the engine records. UCAL's epoch is its first, the
only one of SpCL's memory that extracts features, with questions that an oracle answers. NNCT's
epoch is one in the middle of its run, with predicted labels. Camera styles are left out: they need
files.

Pixels are noise and weights are random, so that features would mean nothing. The network is run on
all images for its cost, and everything after it gets planted features: UCAL clusters and ranks
them; NNCT's memory begins with them and its batches stay near them, with the gradient of the loss
for the network. Thus there are as many clusters and labels as with a trained network.

The plain loop does what the papers' code does: decoded images in memory, which torchvision
transforms one by one in the workers of a DataLoader; an eager network in float32 with PyTorch's
defaults and one BatchNorm over the batch (cheaper than groups of it); logits over all images, and
for NNCT full sorts; a loop of updates; PyTorch's default form of the optimizer. Batches are as
large as ours. It is measured on fewer of them, and its epoch is extrapolated by images.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import bench_nnct_step as nnct_step
import bench_pseudo_labels
import harness
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console
from torch import Tensor
from torch.utils import data as torch_data
from torch.utils.data import DataLoader
from torchvision import transforms

from fastreid_al.config import (
    EngineConfig,
    ImageConfig,
    MethodName,
    QuestionConfig,
    RunConfig,
    recipe,
)
from fastreid_al.data import ImageSet
from fastreid_al.data.augment import (
    CROP_ASPECT,
    ERASE_ASPECT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
)
from fastreid_al.data.loader import BatchLoader
from fastreid_al.data.pixels import PixelStore
from fastreid_al.data.records import Record
from fastreid_al.data.samplers import IdentitySampler, PassSampler, iterations_per_epoch
from fastreid_al.engine.console import Reporter
from fastreid_al.engine.extract import extract_features, identities_and_cameras
from fastreid_al.engine.loop import TrainingLoop
from fastreid_al.engine.method import Method
from fastreid_al.engine.network import Network, choose_algorithms
from fastreid_al.engine.optimizer import make_optimizer
from fastreid_al.engine.run_folder import RunFolder
from fastreid_al.engine.stop_signal import StopSignal
from fastreid_al.engine.training import Training
from fastreid_al.methods.collective_questions import CollectiveQuestions
from fastreid_al.methods.nnct import NNCT
from fastreid_al.methods.ucal import UCAL
from fastreid_al.metrics import Ranking, rank_gallery
from fastreid_al.models import ReIdNet, build_model
from fastreid_al.runs.context import make_context
from fastreid_al.runs.data import Dataset
from fastreid_al.runs.questions import open_questions
from fastreid_al.synthetic import planted_partition


class Size(NamedTuple):
    """Size of a problem.

    Args:
        backbone: Name of the network.
        height: Height of the images.
        width: Width of the images.
        batch: Images in a batch.
        images: Training images.
        iterations: UCAL's batches in an epoch.
        questions: UCAL's greatest number of questions in an epoch.
        query: Query images.
        gallery: Gallery images.
    """

    backbone: str
    height: int
    width: int
    batch: int
    images: int
    iterations: int
    questions: int
    query: int
    gallery: int


SIZES = {
    "tiny": [Size("resnet18", 64, 32, 16, 96, 2, 5, 10, 30)],
    "small": [Size("resnet18", 64, 32, 16, 96, 3, 5, 10, 30)],
    "market": [Size("resnet50", 256, 128, 64, 12_936, 400, 200, 3_368, 15_913)],
    "msmt17": [Size("resnet50", 256, 128, 64, 32_621, 800, 500, 11_659, 82_161)],
}
#: Goals at MSMT17's size on an H100: most seconds, and least images per second.
GOALS = {
    "training_images_per_s": 3_500,
    "extraction_images_per_s": 9_000,
    "epoch_s": 20,
    "clustering_s": 1,
    "ranking_s": 2,
}
#: Greatest share of a step on a CPU outside the network's forward and backward.
SHARE = 0.10
#: Batches from which that share is measured, by scale; those of the recipe where none are given.
SHARE_BATCHES = {"small": 2}
#: Images with pixels of their own; the others repeat them.
PIXELS = 2_000
CAMERAS = 15
#: Turns of ours and of the plain loop, and the plain loop's batches in a turn.
TURNS = {"cpu": 1, "cuda": 2}
BATCHES = {"cpu": 2, "cuda": 12}
#: Batches of ours in a turn, and before the timing begins.
OURS = {"cpu": 2, "cuda": 50}
WARM = {"cpu": 1, "cuda": 8}
WORKERS = {"cpu": 2, "cuda": 8}
#: Batches that each worker has ready.
READY = {"cpu": 1, "cuda": 2}
#: Greatest number of images that the plain loop clusters; its dense form takes minutes for more.
DENSE_UP_TO = 5_000
PHASES = (
    "extraction",
    "clustering",
    "questions",
    "data",
    "network",
    "memory",
    "optimizer",
    "evaluation",
)

_MIB = 2**20


class PlantedUCAL(UCAL):
    """Clusters planted features (n, D), whatever the network extracts."""

    planted: Tensor
    #: Whether the network is run on all images first, for its cost.
    extracts = True

    def label_images(self, epoch: int, extract: Callable[..., Tensor]) -> dict[str, float]:
        """Cluster the planted features."""

        def planted() -> Tensor:
            if self.extracts:
                extract()
            # The memory may update its features in place.
            return self.planted.clone()

        return super().label_images(epoch, planted)


class PlantedNNCT(NNCT):
    """Gets planted features (n, D), with the gradient of the network's."""

    planted: Tensor

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:  # noqa: D102
        return super().loss(with_values(embeddings, self.planted[rows]), rows)

    def update(self, embeddings: Tensor, rows: Tensor) -> None:  # noqa: D102
        super().update(self.planted[rows], rows)


def with_values(embeddings: Tensor, values: Tensor) -> Tensor:
    """Return the values, with the gradient of the embeddings."""
    return values + (embeddings - embeddings.detach())


class Planted(NamedTuple):
    """What the methods get of the n training images.

    Args:
        features: (n, D) on the device, those of the memory.
        moved: (n, D) on the device, those of the batches.
        identities: (n,) int64.
        cameras: (n,) int64.
    """

    features: Tensor
    moved: Tensor
    identities: Tensor
    cameras: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes on the device that a run with a trained network would not take."""
        return self.features.nbytes + (self.moved.nbytes if self.moved is not self.features else 0)


def plant(method: str, n: int, dim: int, device: str, spread: float = 1.5) -> Planted:
    """Plant heavy-tailed identities to cluster; for NNCT, identities of about 20 images."""
    if method == "ucal":
        features, identities, cameras = planted_partition(n, dim, cameras=CAMERAS, spread=spread)
        features = features.to(device)
        return Planted(features, features, identities, cameras)
    features, identities = harness.unit_rows(device, "float32", n, dim, spread=nnct_step.SPREAD)
    moved = harness.near(features, torch.arange(n, device=device), nnct_step.MOVED)
    return Planted(features, moved, identities, torch.zeros(n, dtype=torch.int64))


class Evaluation:
    """Extracts all test images, then ranks planted features of as many."""

    def __init__(self, size: Size, config: RunConfig, pixels: Tensor, device: str) -> None:
        self.config = config
        self.seconds = {"evaluation_extraction_s": 0.0, "ranking_s": 0.0}
        counts = [size.query, size.gallery]
        # The engine's evaluation reads from the host too.
        self.loaders = [
            BatchLoader(store_of(pixels, count), torch.device(device), "host") for count in counts
        ]
        features, identities = harness.unit_rows(
            device, "float32", sum(counts), dim_of(size.backbone)
        )
        seen_by = torch.randint(CAMERAS, (sum(counts),), generator=torch.Generator().manual_seed(0))
        parts = (features.split(counts), identities.cpu().split(counts), seen_by.split(counts))
        self.sides = [part[side] for side in range(2) for part in parts]
        self.nbytes = features.nbytes

    def __call__(self, network: Network) -> Ranking:
        """Rank the planted features."""
        engine = self.config.engine
        stage = self.config.network.test_features
        self.seconds["evaluation_extraction_s"] = sum(
            harness.clocked(extract_features, network, loader, engine, None, stage)[1]
            for loader in self.loaders
        )
        ranking, self.seconds["ranking_s"] = harness.clocked(rank_gallery, *self.sides)
        return ranking


class Ours:
    """A network, its images and planted features; each call of `epoch` is a run of one epoch.

    Args:
        config: The settings.
        planted: What the method gets.
        device: Where it runs.
        extracts: Whether the network is run on all images before UCAL clusters them.
    """

    def __init__(
        self, config: RunConfig, planted: Planted, device: str, extracts: bool = True
    ) -> None:
        torch.manual_seed(config.seed)
        choose_algorithms(config.engine.deterministic)
        self.config = config
        self.planted = planted
        self.device = torch.device(device)
        self.extracts = extracts
        model = (
            network_of(config, config.network.bn_group)
            .to(device)
            .to(memory_format=torch.channels_last)
        )
        self.warnings: list[str] = []
        self.network = Network(model, config.engine, self.device, self.warnings.append)
        n = len(planted.features)
        self.pixels = noise(min(n, PIXELS), config.image)
        self.loader = BatchLoader(store_of(self.pixels, n), self.device, config.image.place)

    def epoch(
        self,
        iterations: int,
        evaluate: Callable[[Network], Ranking] | None = None,
        questions: int = 0,
    ) -> dict[str, Any]:
        """Train an epoch of so many batches, and return what the engine records of it."""
        first = nnct_step.EPOCH if self.config.method == "nnct" else 0
        config = replace(
            self.config,
            epochs=first + 1,
            ask="ucal" if questions else "none",
            batch=replace(self.config.batch, iterations=iterations),
            questions=replace(self.config.questions, start=0, per_epoch=questions),
        )
        with tempfile.TemporaryDirectory() as name, self._method(config, Path(name)) as method:
            optimizer = make_optimizer(self.network.model, config.optimizer, method.layers())
            schedule = torch.optim.lr_scheduler.StepLR(
                optimizer, config.optimizer.step, config.optimizer.gamma
            )
            augment = Augment(config.image, config.seed)
            state = Training(
                config,
                self.network.model,
                method,
                optimizer,
                schedule,
                augment,
                data={},
                precision=self.network.precision.training,
                epoch=first,
            )
            identities = self.planted.identities.cpu()
            TrainingLoop(
                state,
                self.network,
                self.loader,
                RunFolder(Path(name)),
                silent(),
                StopSignal(),
                evaluate,
                identities,
            ).run()
        return state.history[-1]

    @contextmanager
    def _method(self, config: RunConfig, folder: Path) -> Iterator[Method]:
        n = len(self.loader)
        planted = self.planted
        if config.method == "nnct":
            nnct = PlantedNNCT(
                n, config.neighbours_k, config.nnct, config.batch, nnct_step.EPOCHS, config.seed
            )
            nnct.planted = planted.moved
            nnct.memory.bank = planted.features.clone()
            nnct.label_memory.to(self.device)
            rows = torch.arange(n, device=self.device)
            nnct.label_memory.update(rows, *nnct_step.members(planted.identities))
            yield nnct
            return
        people = zip(planted.identities.tolist(), planted.cameras.tolist(), strict=True)
        records = [Record(folder / f"{i}.jpg", *who) for i, who in enumerate(people)]
        images = ImageSet("msmt17", folder, records, [], [])
        target = Dataset(images, records, self.loader.store, *identities_and_cameras(records))
        context = make_context(replace(config, run_dir=str(folder)), self.device, reporter=silent())
        with open_questions(context, target) as questions:
            ucal = PlantedUCAL(
                planted.cameras,
                config.cluster,
                config.batch,
                config.memory,
                config.seed,
                questions=CollectiveQuestions(questions),
            )
            ucal.planted = planted.features
            ucal.extracts = self.extracts
            yield ucal


class Decoded(torch_data.Dataset[tuple[Tensor, int]]):
    """Decoded images in memory, each transformed when it is read."""

    def __init__(self, pixels: Tensor, n: int, transform: Callable[[Image.Image], Tensor]) -> None:
        self.pixels = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.n = n
        self.transform = transform

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Return the network's input (3, H, W), and the row."""
        return self.transform(Image.fromarray(self.pixels[row % len(self.pixels)])), row


class Plain:
    """The plain loop."""

    def __init__(self, config: RunConfig, pixels: Tensor, planted: Planted, device: str) -> None:
        self.config = config
        self.planted = planted
        self.device = device
        torch.manual_seed(config.seed)
        self.model = network_of(config, 0).to(device)
        n = len(planted.features)
        settings = config.optimizer
        self.images = {
            "training": Decoded(pixels, n, augmented(config.image)),
            "extraction": Decoded(pixels, n, transforms.Compose(finish())),
        }
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        rate = settings.lr if settings.backbone_lr is None else settings.backbone_lr
        decay = settings.weight_decay
        size = config.batch.size
        seed = config.seed
        self.memory: nnct_step.Published | Logits
        self.optimizer: torch.optim.Optimizer
        if config.method == "nnct":
            share = config.nnct.momentum * nnct_step.EPOCH / nnct_step.EPOCHS
            self.memory = nnct_step.Published(planted.features.clone(), planted.identities, share)
            self.optimizer = torch.optim.SGD(
                parameters, rate, settings.momentum, weight_decay=decay, nesterov=True
            )
            self.batches = PassSampler(n, size, n).batches(seed, 0)
        else:
            classes = planted.identities.unique(return_inverse=True)[1]
            self.memory = Logits(
                planted.features.clone(), classes.to(device), config.memory.temperature
            )
            self.optimizer = torch.optim.Adam(parameters, rate, weight_decay=decay)
            sampler = IdentitySampler(classes, planted.cameras, size, config.batch.per_identity, n)
            self.batches = sampler.batches(seed, 0)

    def train(self, iterations: int) -> float:
        """Return the images per second of training."""
        self.model.train()
        return self._rate("training", iterations, self.batches, self._step)

    def extract(self, iterations: int) -> float:
        """Return the images per second of extraction."""
        self.model.eval()
        batch = self.config.engine.extract_batch
        n = len(self.planted.features)
        starts = itertools.cycle(range(0, n - batch + 1, batch))
        with torch.no_grad():
            return self._rate(
                "extraction",
                iterations,
                (torch.arange(s, s + batch) for s in starts),
                self._forward,
            )

    def _rate(
        self,
        what: str,
        iterations: int,
        batches: Iterator[Tensor],
        work: Callable[[Tensor, Tensor], object],
    ) -> float:
        """Return the images per second of some work.

        Batches that the workers have ready at the start are not timed; as many more are left to
        make at the end, so that the workers are busy throughout.
        """
        workers = WORKERS[self.device]
        ready = READY[self.device] * workers
        rows = [batch.tolist() for batch in itertools.islice(batches, iterations + 2 * ready)]
        loader = DataLoader(
            self.images[what],
            batch_sampler=rows,
            num_workers=workers,
            prefetch_factor=READY[self.device],
            pin_memory=self.device == "cuda",
        )
        start = 0.0
        for number, (images, of_rows) in enumerate(itertools.islice(loader, ready + iterations)):
            if number == ready:
                start = self._now()
            work(
                images.to(self.device, non_blocking=True),
                of_rows.to(self.device, non_blocking=True),
            )
        return sum(map(len, rows[ready : ready + iterations])) / (self._now() - start)

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _step(self, images: Tensor, rows: Tensor) -> None:
        embeddings = self.model(images, "raw")
        if isinstance(self.memory, nnct_step.Published):
            embeddings = with_values(embeddings, self.planted.moved[rows])
        loss = self.memory.loss(embeddings, rows)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.memory.update(embeddings.detach(), rows)

    def _forward(self, images: Tensor, rows: Tensor) -> Tensor:
        features: Tensor = self.model(images).cpu()
        return features


class Logits:
    """SpCL's memory: similarities of the batch to all images, averaged over each class."""

    def __init__(
        self, bank: Tensor, classes: Tensor, temperature: float, momentum: float = 0.2
    ) -> None:
        self.bank = bank
        self.classes = classes
        self.temperature = temperature
        self.momentum = momentum
        self.counts = classes.bincount()

    def loss(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Compute UCAL's Eq. 1."""
        logits = F.normalize(embeddings) @ self.bank.T / self.temperature
        sums = torch.zeros(len(self.counts), len(rows), device=logits.device).index_add(
            0, self.classes, logits.T
        )
        return F.cross_entropy((sums / self.counts[:, None]).T, self.classes[rows])

    def update(self, embeddings: Tensor, rows: Tensor) -> None:
        """Update the rows one after another."""
        for feature, row in zip(F.normalize(embeddings), rows, strict=True):
            moved = self.momentum * self.bank[row] + (1 - self.momentum) * feature
            self.bank[row] = moved / moved.norm()


def augmented(config: ImageConfig) -> Callable[[Image.Image], Tensor]:
    """Return torchvision's transforms for the settings."""
    size = (config.height, config.width)
    strength = config.jitter
    aspect = tuple(1 / value for value in reversed(CROP_ASPECT))
    steps: list[Any] = (
        [transforms.RandomResizedCrop(size, config.crop_area, aspect)]
        if config.crop_area[0] < 1
        else []
    )
    steps += [transforms.RandomHorizontalFlip(config.flip)]
    steps += [transforms.RandomRotation(config.rotate)] if config.rotate else []
    steps += [transforms.Pad(config.pad), transforms.RandomCrop(size)] if config.pad else []
    steps += [transforms.ColorJitter(strength, strength, strength)] if strength else []
    erase = transforms.RandomErasing(config.erase, config.erase_area, ERASE_ASPECT)
    transform: Callable[[Image.Image], Tensor] = transforms.Compose([*steps, *finish(), erase])
    return transform


def finish() -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


def noise(count: int, image: ImageConfig) -> Tensor:
    shape = (count, 3, image.height, image.width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def store_of(pixels: Tensor, n: int) -> PixelStore:
    """Return a store of n images that repeat a few pixels."""
    return PixelStore(
        pixels, torch.arange(n) % len(pixels), [f"{row:032x}" for row in range(n)], []
    )


def network_of(config: RunConfig, bn_group: int) -> ReIdNet:
    return build_model(config.model, config.weights, pool=config.network.pool, bn_group=bn_group)


def dim_of(backbone: str) -> int:
    return 2_048 if backbone == "resnet50" else 512


def silent() -> Reporter:
    return Reporter(Console(quiet=True))


def config_of(size: Size, method: MethodName, device: str) -> RunConfig:
    """Return the paper's settings for MSMT17, with another network, size and batch."""
    paper = recipe("msmt17", "paper", method)
    return replace(
        paper,
        camstyle="none",
        model=size.backbone,
        weights="none",
        device=device,
        evaluate_every=0,
        image=replace(paper.image, height=size.height, width=size.width),
        batch=replace(paper.batch, size=size.batch),
        questions=QuestionConfig(),
        # A small set has several batches too.
        engine=EngineConfig(extract_batch=min(256, size.images // 8)),
    )


def peak_mib(device: str) -> float | None:
    """Return the greatest number of MiB allocated on the device since `watch_memory`."""
    return torch.cuda.max_memory_allocated() / _MIB if device == "cuda" else None


def watch_memory(device: str) -> float:
    """Start to measure the peak, and return the MiB that are allocated now."""
    if device != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / _MIB


def rates(record: dict[str, Any], n: int) -> dict[str, float]:
    """Return images per second of training and, where there was one, of extraction."""
    found = {"training_images_per_s": record["speed"]["images_per_second"]}
    if record["seconds"].get("extraction"):
        found["extraction_images_per_s"] = round(n / record["seconds"]["extraction"], 1)
    return found


def goals(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the goals for which there are figures, and whether they are met."""
    return {
        name: {
            "goal": goal,
            "found": found[name],
            "met": bool(found[name] >= goal if name.endswith("per_s") else found[name] <= goal),
        }
        for name, goal in GOALS.items()
        if name in found
    }


@pytest.mark.parametrize("method", ["ucal", "nnct"])
def test_epoch(
    benchmark: BenchmarkFixture, size: Size, method: MethodName, scale: str, device: str
) -> None:
    if device == "cpu" and scale != "small":
        pytest.skip(f"an epoch of {size.backbone} at {scale}'s size takes hours on a CPU")
    n = size.images
    dim = dim_of(size.backbone)
    config = config_of(size, method, device)
    iterations = iterations_per_epoch(size.iterations if method == "ucal" else 0, n, size.batch)
    questions = size.questions if method == "ucal" else 0
    image = f"{size.backbone} {size.height} x {size.width}"
    problem = f"{method}, {image}, {iterations} x {size.batch} of {n:,}"
    benchmark.group = f"epoch, {problem}"
    before = watch_memory(device)
    planted = plant(method, n, dim, device)
    ours = Ours(config, planted, device)
    test = Evaluation(size, config, ours.pixels, device) if method == "ucal" else None
    planted_mib = (planted.nbytes + (0 if test is None else test.nbytes)) / _MIB

    warm_s = harness.clocked(ours.epoch, WARM[device], None, min(questions, 1))[1]
    watch_memory(device)
    record = benchmark.pedantic(ours.epoch, (iterations, test, questions), rounds=1, iterations=1)
    peak = peak_mib(device)
    seconds = {name: record["seconds"][name] for name in PHASES if name in record["seconds"]}
    found: dict[str, Any] = {
        "epoch_s": round(record["seconds"]["labels"] + record["seconds"]["training"], 3),
        **rates(record, n),
        **{f"{name}_s": value for name, value in seconds.items()},
        **({} if test is None else {name: round(value, 4) for name, value in test.seconds.items()}),
    }
    if method == "nnct":
        del found["clustering_s"]
    inside = sum(record["seconds"].get(part, 0.0) for part in ("labels", "training", "evaluation"))
    benchmark.extra_info.update(
        **{
            "step": "epoch",
            "form": "ours",
            "method": method,
            "problem": problem,
            "n": n,
            "dim": dim,
        },
        **harness.surroundings(device),
        **found,
        seconds=record["seconds"],
        peak_MiB=round(1e9 * record["speed"]["memory_gb"] / _MIB, 1)
        if peak is None
        else round(peak - before - planted_mib, 1),
        peak_from="resident set of the process"
        if peak is None
        else "allocated on the device, less what is planted",
        pixels_on=ours.loader.place,
        precision=ours.network.precision.training,
        compiled=ours.network.compiled and not ours.warnings,
        warm_up_s=round(warm_s, 2),
        # Mostly the checkpoints.
        around_s=round((harness.median_seconds(benchmark) or inside) - inside, 2),
        questions=record.get("questions", 0),
        **{
            name: record[name]
            for name in ("clusters", "classes", "labels_per_image")
            if name in record
        },
    )
    if device == "cuda" and scale == "msmt17":
        benchmark.extra_info["goals"] = goals(found if method == "ucal" else rates(record, n))
    assert np.isfinite(record["loss"])
    assert (record.get("questions", 0) > 0) == (questions > 0)
    benchmark.extra_info["plain"] = compare_with_plain(ours, planted, iterations, device)


def compare_with_plain(
    ours: Ours, planted: Planted, iterations: int, device: str
) -> dict[str, Any]:
    """Measure the plain loop and ours in turns.

    Returns:
        Medians of both, and the extrapolated time of the plain loop's epoch.
    """
    before = watch_memory(device)
    n = len(ours.loader)
    size = ours.config.batch.size
    count = BATCHES[device]
    plain = Plain(ours.config, ours.pixels, planted, device)
    extracts = ours.config.method == "ucal"
    turns: list[dict[str, float]] = []
    ours_turns: list[dict[str, float]] = []
    peak = None
    for _ in range(TURNS[device]):
        turn = {"training_images_per_s": plain.train(count)}
        if extracts:
            turn["extraction_images_per_s"] = plain.extract(count)
        peak = peak or peak_mib(device)
        turns.append(turn)
        ours_turns.append(rates(ours.epoch(OURS[device]), n))
    medians = _medians(turns)
    ours_medians = _medians(ours_turns)
    epoch_s = iterations * size / medians["training_images_per_s"]
    found: dict[str, Any] = {
        **medians,
        **{f"ours_{name}": value for name, value in ours_medians.items()},
        "measured_on": f"{count} batches in each of {TURNS[device]} turns, medians; "
        "the epoch extrapolated by images",
        "network": "float32 (convolutions as PyTorch does them by default), eager, "
        "one BatchNorm over the batch",
        "workers": WORKERS[device],
        "clustering": "none" if not extracts else "left out",
    }
    if peak is not None:
        found["peak_MiB"] = round(peak - before, 1)
    if extracts:
        epoch_s += n / medians["extraction_images_per_s"]
        if n <= DENSE_UP_TO and bench_pseudo_labels.DBSCAN is not None:
            found["clustering_s"] = round(
                harness.clocked(bench_pseudo_labels.dense, planted.features)[1], 3
            )
            found["clustering"] = "dense, as published"
            epoch_s += found["clustering_s"]
    return {**found, "epoch_s": round(epoch_s, 3)}


def _medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Median of each figure over the turns."""
    medians = {}
    for name in turns[0]:
        medians[name] = round(statistics.median(turn[name] for turn in turns), 1)
    return medians


def test_share_outside_the_network(benchmark: BenchmarkFixture, scale: str, device: str) -> None:
    """Measure training steps of the synthetic recipe with planted labels, without extraction."""
    if device != "cpu":
        pytest.skip("the share is a matter of CPUs")
    config = replace(recipe("synthetic"), device=device)
    image = config.image
    n = config.synthetic.train_images
    batches = SHARE_BATCHES.get(scale, config.batch.iterations)
    planted = plant("ucal", n, dim_of(config.model), device, spread=1.0)
    ours = Ours(config, planted, device, extracts=False)
    ours.epoch(1)
    record = benchmark.pedantic(ours.epoch, (batches,), rounds=1, iterations=1)
    seconds = {name: record["seconds"][name] for name in ("data", "network", "memory", "optimizer")}
    share = 1 - seconds["network"] / sum(seconds.values())
    problem = (
        f"{config.model} {image.height} x {image.width}, {batches} x {config.batch.size} of {n:,}"
    )
    benchmark.group = f"share of a step outside the network, {problem}"
    benchmark.extra_info.update(
        **{"step": "share", "problem": problem, "n": n, **seconds},
        **harness.surroundings(device),
        share=round(share, 4),
        images_per_s=record["speed"]["images_per_second"],
        goal=SHARE,
        met=share <= SHARE,
    )
