"""Builds the network, the method and the training state of a run."""

from __future__ import annotations

import torch

from ..active import QuestionRounds
from ..data import ImageSet
from ..data.augment import Augment
from ..data.camera_style import CameraStyle, camera_style
from ..engine.extract import identities_and_cameras
from ..engine.method import Method
from ..engine.optimizer import make_optimizer
from ..engine.training import Training
from ..errors import UserError
from ..methods.adaptation import Source, SourceClassifier
from ..methods.collective_questions import CollectiveQuestions
from ..methods.nnct import NNCT
from ..methods.supervised import Supervised
from ..methods.ucal import UCAL
from ..models import ReIdNet, build_model
from .context import RunContext
from .data import Dataset, make_source, test_digests


def build_network(context: RunContext, fresh: bool = True) -> ReIdNet:
    """Build the network of a run on its device, with weights that depend only on the seed.

    Args:
        context: The run.
        fresh: Whether the run starts from the beginning. A resumed run takes its weights from the
            checkpoint, so the initial ones are not read again.

    Raises:
        UserError: The network cannot be built as configured, or its weights cannot be read.
    """
    config = context.config
    # The initial weights are drawn from the global generator, right after it is seeded.
    torch.manual_seed(config.seed)
    try:
        model = build_model(
            context.extensions.model or config.model,
            config.weights if fresh else "none",
            pool=config.network.pool,
            bn_group=config.network.bn_group,
            domain_bn=config.network.domain_bn and config.source is not None,
            osnet_fc=config.network.osnet_fc,
            report=context.reporter.line,
        )
    except ValueError as error:
        raise UserError(f"`network`: {error}") from error
    return model.to(context.device).to(memory_format=torch.channels_last)


def build_nnct(context: RunContext, n: int, source: Source | None, features: int) -> NNCT:
    """Build NNCT for a number of images.

    Args:
        context: The run.
        n: Training images.
        source: Labels of the source, where the run has one.
        features: D, the dimension of the features.

    Raises:
        UserError: There are too few images for the settings.
    """
    config = context.config
    classifier = None
    if source is not None:
        classifier = SourceClassifier(source, features, config.adaptation.weight, config.seed)
    try:
        return NNCT(
            n,
            config.neighbours_k,
            config.nnct,
            config.batch,
            config.epochs,
            config.seed,
            classifier,
            context.world,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def check_method(
    context: RunContext, images: ImageSet, source: ImageSet | None, features: int
) -> None:
    """Refuse too few images for the method before they are decoded, which takes long.

    Args:
        context: The run.
        images: The set to train on.
        source: The labelled source, where the run has one.
        features: D, the dimension of the features.

    Raises:
        UserError: There are too few images for the settings.
    """
    if context.config.method == "nnct":
        labels = None if source is None else make_source(*identities_and_cameras(source.train))
        build_nnct(context, len(images.train), labels, features)


def build_method(
    context: RunContext,
    target: Dataset,
    source: Dataset | None,
    features: int,
    questions: QuestionRounds | None,
) -> Method:
    """Build the method of a run.

    Args:
        context: The run.
        target: The images to train on.
        source: The labelled source, where the run has one.
        features: D, the dimension of the features.
        questions: The questions to the annotator, where the run asks any.

    Raises:
        UserError: The method cannot work with the settings or the images.
    """
    config = context.config
    labels = None if source is None else make_source(source.identities, source.cameras)
    if config.method == "nnct":
        return build_nnct(context, len(target), labels, features)
    tracks = target.tracks(config.cluster) if config.method == "ucal" else None
    if tracks is not None:
        count = int((tracks[tracks >= 0].bincount() > 1).sum())
        context.reporter.line(
            f"{count:,} tracks of two or more images: the images of each are taken to be the same "
            "identity (`cluster.tracks`)"
        )
    try:
        if config.method == "supervised":
            return Supervised(
                target.identities,
                target.cameras,
                config.batch,
                config.memory,
                config.seed,
                context.world,
            )
        return UCAL(
            target.cameras,
            config.cluster,
            config.batch,
            config.memory,
            config.seed,
            CollectiveQuestions(questions, context.world, context.stop.check),
            labels,
            context.world,
            tracks,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def build_training(
    context: RunContext,
    model: ReIdNet,
    target: Dataset,
    source: Dataset | None,
    questions: QuestionRounds | None,
) -> Training:
    """Build the state of a run at its beginning.

    Args:
        context: The run.
        model: The network.
        target: The images to train on.
        source: The labelled source, where the run has one.
        questions: The questions to the annotator, where the run asks any.

    Raises:
        UserError: The method or the camera styles cannot work with the settings or the images.
    """
    config = context.config
    style = _build_style(context, target)
    method = build_method(context, target, source, model.features, questions)
    optimizer = make_optimizer(model, config.optimizer, method.layers().to(context.device))
    scheduler = torch.optim.lr_scheduler.StepLR(
        optimizer, config.optimizer.step, config.optimizer.gamma
    )
    return Training(
        config,
        model,
        method,
        optimizer,
        scheduler,
        Augment(config.image, config.seed, style),
        _fingerprint(context, target, source, style),
        context.world,
        context.precision.training,
    )


def _build_style(context: RunContext, target: Dataset) -> CameraStyle | None:
    """Build the camera styles of the training images; None when they have none."""
    with context.reporter.progress("camera styles", len(target)) as update:
        style = camera_style(
            context.config.camstyle,
            target.images,
            target.records,
            target.store,
            context.config.style,
            context.config.image,
            context.folder.path,
            context.reporter.warn,
            update,
            context.world,
        )
    if style is not None:
        context.reporter.line(style.describe())
    return style


def _fingerprint(
    context: RunContext, target: Dataset, source: Dataset | None, style: CameraStyle | None
) -> dict[str, str]:
    """Describe the content of all images of a run, by name."""
    fingerprint = target.fingerprint(test_digests(context, target.images))
    if source is not None:
        for name, content in source.fingerprint().items():
            fingerprint[f"source: {name}"] = content
    if style is not None:
        fingerprint |= style.digests
    return fingerprint
