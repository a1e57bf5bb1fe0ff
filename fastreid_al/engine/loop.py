"""The training loop: epochs, steps, evaluations and checkpoints of any method."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..answers.rounds import Outlook
from ..config import RunConfig
from ..data.loader import BatchLoader, prefetch, to_device_async
from ..distributed.world import World
from ..errors import DivergedError, TrainingError
from ..metrics import Ranking
from ..metrics.clusters import scores_by_key
from ..models import Domain, update_running
from .checkpoint import save_checkpoint
from .clock import Clock
from .console import Reporter, percent
from .extract import extract_features, ranking_metrics
from .memory_use import peak_memory
from .method import Method
from .network import Network
from .profile import Profile
from .resume import after_divergence
from .run_folder import RunFolder
from .stop_signal import Interrupted, StopSignal
from .training import Training


class Batch(NamedTuple):
    """This process's part of a batch, on its way to the device."""

    #: (B,) int64 rows of the whole batch's target images.
    target: Tensor
    #: This process's part of them, and of the source's images.
    own: slice
    #: (b,) int64 on the device, or (2b,) with a source: rows of this process's target images, then
    #: of its source images.
    rows: Tensor
    #: Returns the target's images (b, 3, H, W) uint8.
    pixels: Callable[[], Tensor]
    #: Returns the source's images (b, 3, H, W) uint8; None without a source.
    source_pixels: Callable[[], Tensor] | None


@dataclass
class TrainingLoop:
    """Trains a run from wherever its state stands to its last epoch.

    Args:
        state: The state of the run.
        network: Its network.
        loader: Pixels of the training images.
        folder: The folder of the run, which gets checkpoints and metrics.
        reporter: Prints lines and progress.
        stop: Signals that ask the run to stop.
        evaluate: Scores the network; None when the set has no test images.
        identities: (n,) int64 true identities, which are used only for metrics; None where unknown.
        source: Pixels of the source's training images, where the method trains with a source.
        cameras: (n,) int64 cameras, -1 where unknown, which are used only for metrics; None where
            no camera is known.
        asked: Called with an epoch, from 1, when questions were asked in it and its images are
            labelled.
    """

    state: Training
    network: Network
    loader: BatchLoader
    folder: RunFolder
    reporter: Reporter
    stop: StopSignal
    evaluate: Callable[[Network], Ranking] | None = None
    identities: Tensor | None = None
    source: BatchLoader | None = None
    cameras: Tensor | None = None
    asked: Callable[[int], None] | None = None
    clock: Clock = field(init=False)
    profile: Profile = field(init=False)

    def __post_init__(self) -> None:
        device = self.network.device
        self.clock = Clock(device)
        self.profile = Profile(self.folder, self.state.config.profile, device)

    def run(self) -> None:
        """Train to the last epoch.

        Raises:
            Interrupted: SIGINT or SIGTERM came. The state after the current step is saved, or the
                one before the extraction or evaluation that was ended.
            TrainingError: The loss or the features are not finite, there is nothing to contrast, or
                the device has too little memory; the last checkpoint is intact.
            CheckpointError: A checkpoint could not be written; the one before it is intact.
        """
        self.folder.rewrite_metrics(self.state.history)
        try:
            self._run_epochs()
        except DivergedError as error:
            raise TrainingError(f"{error}; {after_divergence(self.folder)}") from error
        self.reporter.attempt("the profile", lambda: self.profile.write(self.state.history))

    def _run_epochs(self) -> None:
        state = self.state
        with self.stop.listening():
            if self._evaluates_untrained():
                self._record({"epoch": 0, **self._scores()})
            if state.pending:
                self._finish_epoch()
            while state.epoch < state.config.epochs:
                self._run_epoch()
                if self._stops() and state.epoch < state.config.epochs:
                    raise Interrupted(self.stop.signum or signal.SIGTERM)

    def _stops(self) -> bool:
        """Whether any process of the run got a signal. Called by all processes."""
        return self.state.world.any_true(bool(self.stop.signum))

    def _run_epoch(self) -> None:
        """Label the images, train one epoch, evaluate it if that is due, and save."""
        state = self.state
        start = time.perf_counter()
        if state.step == 0:
            self._label_images()
        labelled = time.perf_counter()
        first_step = state.step
        try:
            self._train_epoch()
        except torch.OutOfMemoryError as error:
            raise TrainingError(self._out_of_memory()) from error
        record = self._epoch_record()
        trained = time.perf_counter()
        record["seconds"] = self._seconds(record, labelled - start, trained - labelled)
        images_per_step = state.config.batch.size * (1 if self.source is None else 2)
        images = (state.step - first_step) * images_per_step
        record["speed"] = {
            "images_per_second": round(images / (trained - labelled), 2),
            **peak_memory(self.network.device, state.world),
        }
        state.pending = record
        state.end_epoch()
        self._finish_epoch()

    def _label_images(self) -> None:
        """Let the method label the images, and score its clusters from before the questions."""
        state = self.state
        state.metrics = {**state.method.label_images(state.epoch, self._extract)}
        before = state.method.labels_before_questions
        if before is not None and self.asked is not None:
            self.asked(state.epoch + 1)
        if before is not None and self.identities is not None:
            for key, value in scores_by_key(before, self.identities, self.cameras).items():
                state.metrics[f"drafted_{key}"] = value

    def _extract(self, domain: Domain = "target") -> Tensor:
        """Extract the features (n, D) of a domain's training images."""
        loader = self.loader
        phase = "extracting"
        if domain == "source":
            assert self.source is not None
            loader = self.source
            phase = "extracting the source"
        with self.clock("extraction"), self.reporter.progress(phase, len(loader)) as update:
            return extract_features(
                self.network,
                loader,
                self.state.config.engine,
                self.stop.checked(update),
                domain=domain,
                world=self.state.world,
            )

    def _train_epoch(self) -> None:
        """Train the batches of the epoch that have not been trained yet."""
        state = self.state
        state.model.train()
        total = state.method.iterations
        batches = state.method.batches(state.epoch)
        for _ in range(state.step):
            next(batches)
        # The sum stays on the device and is read once, at the end of the epoch.
        state.loss = state.loss.to(self.network.device)
        title = f"epoch {state.epoch + 1}/{state.config.epochs}"
        with self.profile.steps(total - state.step) as step_done:
            prefetched = prefetch(batches, self._start_batch)
            for _, batch in self.reporter.track(title, prefetched, total, state.step):
                self._train_step(batch)
                state.step += 1
                step_done()
                if self._stops() and state.step < total:
                    state.save(self.folder)
                    raise Interrupted(self.stop.signum or signal.SIGTERM)

    def _train_step(self, batch: Batch) -> None:
        """Train one batch."""
        state = self.state
        method = state.method
        self.network.begin_step()
        with self.clock("data"):
            images, source_images = self._augmented(batch)
        with self.clock("network"):
            embeddings = self.network.train(images)  # (b, D)
            if source_images is not None:
                source_embeddings = self.network.train(source_images, "source")
                embeddings = torch.cat([embeddings, source_embeddings])  # (2b, D)
        with self.clock("memory"):
            loss = method.loss(embeddings, batch.rows)
        with self.clock("network"):
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with self.clock("optimizer"):
            _average_gradients(method, state.world)
            state.optimizer.step()
            update_running(state.model, state.world)
        with self.clock("memory"):
            method.update(embeddings.detach(), batch.rows)
            state.loss += loss.detach()

    def _start_batch(self, rows: Tensor) -> Batch:
        """Start to bring this process's part of a batch to the device.

        Args:
            rows: (B,) int64, or (2B,) with a source. The processes split each half separately.
        """
        n = len(self.loader)
        target = rows[rows < n]
        source = rows[rows >= n]
        own = self.state.world.local_slice(len(target))
        own_rows = torch.cat([target[own], source[own]])
        return Batch(
            target,
            own,
            to_device_async(own_rows, self.network.device),
            self.loader.start(target[own]),
            None if self.source is None else self.source.start(source[own] - n),
        )

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Augment a batch.

        Random numbers are drawn for the whole batch, so that all processes draw the same.

        Returns:
            The target's images and the source's, (b, 3, H, W) float32 each; None without a source.
        """
        augment = self.state.augment
        height, width = self.loader.store.pixels.shape[-2:]
        count = len(batch.target)
        # Only the target's images have camera styles, which are found by the images' rows.
        draws = augment.draw(count, height, width, batch.target).part(batch.own)
        images = augment.apply(batch.pixels(), draws)
        images = images.contiguous(memory_format=torch.channels_last)
        if batch.source_pixels is None:
            return images, None
        draws = augment.draw(count, height, width).part(batch.own)
        source_images = augment.apply(batch.source_pixels(), draws)
        return images, source_images.contiguous(memory_format=torch.channels_last)

    def _epoch_record(self) -> dict[str, Any]:
        """Return the record of the epoch that was trained, without its scores."""
        state = self.state
        loss = float(state.world.all_reduce_sum(state.loss)) / state.world.size
        return {
            "epoch": state.epoch + 1,
            "loss": loss / max(state.step, 1),
            "lr": state.scheduler.get_last_lr()[0],
            **state.metrics,
            **state.method.label_metrics(self.identities),
        }

    def _seconds(self, record: dict[str, Any], labels: float, training: float) -> dict[str, float]:
        """Return the seconds of an epoch by phase; takes those of the questions out of its record.

        Args:
            record: The record of the epoch.
            labels: Seconds of labelling the images.
            training: Seconds of training.
        """
        phases = self.clock.read()
        if questions := record.pop("seconds_questions", 0.0):
            phases["questions"] = questions
        clustering = labels - phases.get("extraction", 0.0) - phases.get("questions", 0.0)
        seconds = {
            "labels": labels,
            "training": training,
            "clustering": max(0.0, clustering),
            **phases,
        }
        return {name: round(value, 3) for name, value in seconds.items()}

    def _finish_epoch(self) -> None:
        """Evaluate a trained epoch when that is due, record it, and save."""
        state = self.state
        record = dict(state.pending or {})
        if self.evaluate is not None and _evaluates(state.config, state.epoch):
            # An evaluation takes long: what was trained is saved first.
            state.save(self.folder)
            start = time.perf_counter()
            record |= self._scores()
            seconds = round(time.perf_counter() - start, 3)
            record["seconds"] = {**record["seconds"], "evaluation": seconds}
            self._keep_best(record)
        state.pending = None
        self._record(record)
        state.save(self.folder)

    def _evaluates_untrained(self) -> bool:
        """Whether to score the untrained network: once, at the very beginning of the run."""
        state = self.state
        started = bool(state.history) or state.pending is not None
        return self.evaluate is not None and state.config.evaluate_every > 0 and not started

    def _scores(self) -> dict[str, float | None]:
        assert self.evaluate is not None
        return ranking_metrics(self.evaluate(self.network))

    def _keep_best(self, record: dict[str, Any]) -> None:
        """Write best.pt when no trained epoch before had as high an mAP."""
        state = self.state
        best = -1.0
        for earlier in state.history:
            if earlier["epoch"] > 0 and earlier.get("mAP") is not None:
                best = max(best, earlier["mAP"])
        score = record["mAP"]
        if state.world.is_first and score is not None and score > best:
            save_checkpoint(self.folder.best, state.weights())

    def _record(self, record: dict[str, Any]) -> None:
        """Add the record of an epoch to the history and metrics.jsonl, and print it."""
        self.state.history.append(record)
        self.folder.append_metrics(record)
        self.reporter.line(describe_epoch(record))

    def _out_of_memory(self) -> str:
        """Return the message for a step that ran out of memory although one on noise had enough."""
        device = self.network.device
        gib = 0.0
        if device.type == "cuda":
            gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        state = self.state
        return (
            f"epoch {state.epoch + 1}: {device} ({gib:.0f} GiB) ran out of memory, of which the "
            f"feature memory takes a part. A smaller `batch.size` than {state.config.batch.size}"
            f"{self.loader.memory_hint}, or more ranks than {state.world.size}, which shard the "
            "feature memory, needs less"
        )


def _average_gradients(method: Method, world: World) -> None:
    """Average the gradients of a method's layers over the ranks, as DDP does for the network."""
    if world.size == 1:
        return
    for parameter in method.layers().parameters():
        if parameter.grad is not None:
            parameter.grad = world.all_reduce_sum(parameter.grad) / world.size


def _evaluates(config: RunConfig, epoch: int) -> bool:
    """Whether to evaluate after so many epochs."""
    if epoch == config.epochs:
        return True
    return config.evaluate_every > 0 and epoch % config.evaluate_every == 0


def _worth_asking(record: dict[str, Any]) -> bool:
    """Whether further questions are expected to change enough."""
    questions = record["next_questions"]
    if "next_merged" in record:
        return Outlook(questions, record["next_merged"], 0, "clusters").is_worth_asking
    # The record has the share in place of the total.
    return Outlook(questions, record["next_share"], 1).is_worth_asking


def describe_epoch(record: dict[str, Any]) -> str:
    """Describe the record of an epoch in a line."""
    if record["epoch"] == 0:
        return f"untrained: {_describe_scores(record)}"
    parts = [f"epoch {record['epoch']:>3}: loss {record['loss']:.3f}"]
    if "clusters" in record:
        parts.append(f"{record['clusters']} clusters, {record['alone']} images unclustered")
    if "questions" in record:
        parts.append(f"{record['questions']} questions ({record['questions_total']} in all)")
    if "next_share" in record:
        verb, of_what = ("merge", "clusters") if "next_merged" in record else ("change", "pairs")
        share = percent(record["next_share"])
        following = f"the next {record['next_questions']} would {verb} {share} % of the {of_what}"
        if not _worth_asking(record):
            following += ", more are hardly worth it"
        parts.append(following)
    if "pair_precision" in record:
        precision = _before_and_after(record, "pair_precision")
        recall = _before_and_after(record, "pair_recall")
        parts.append(f"pair precision {precision} % recall {recall} %")
    if "class_purity" in record:
        purity = _before_and_after(record, "class_purity")
        completeness = _before_and_after(record, "class_completeness")
        parts.append(f"class purity {purity} % completeness {completeness} %")
    parts += _describe_labels(record)
    if "mAP" in record:
        parts.append(_describe_scores(record))
    seconds = record["seconds"]
    speed = record["speed"]["images_per_second"]
    return (
        f"{', '.join(parts)} ({seconds['labels']:.1f} s labels, "
        f"{seconds['training']:.1f} s training, {speed:,.0f} images/s)"
    )


def _describe_scores(record: dict[str, Any]) -> str:
    if record["mAP"] is None:
        return "mAP -, rank-1 -"
    return f"mAP {percent(record['mAP'])} %, rank-1 {percent(record['rank1'])} %"


def _describe_labels(record: dict[str, Any]) -> list[str]:
    """Describe the multi-label metrics of an epoch; empty for methods that cluster."""
    count = record.get("labels_per_image")
    if count is None:
        return []
    parts = ["single labels"]
    if count:
        parts = [f"{count:.{1 if count >= 1 else 2}f} other images labelled for each"]
        if "label_precision" in record:
            precision = percent(record["label_precision"])
            recall = percent(record["label_recall"])
            parts.append(f"precision {precision} % recall {recall} %")
    if record.get("labels_dropped"):
        parts.append(f"{record['labels_dropped']} labels dropped in all (their lists were full)")
    return parts


def _before_and_after(record: dict[str, Any], key: str) -> str:
    """Return a score as per cent; where questions were asked, with its value before them."""
    after = percent(record.get(key))
    before = f"drafted_{key}"
    return f"{percent(record[before])} -> {after}" if before in record else after
