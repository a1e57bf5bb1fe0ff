"""Describes what a run would do, without doing it."""

from __future__ import annotations

from pathlib import Path

from ..config import RunConfig
from ..data import ImageSet
from ..data.camera_style import match_copies, reason_without_styles
from ..data.records import STYLE_COPIES, count
from ..data.samplers import iterations_per_epoch
from ..distributed.launch import require_single_process
from ..engine.console import Reporter
from ..engine.extract import identities_and_cameras
from ..errors import counted
from ..models import ReIdNet
from .build import build_network, build_nnct, check_method
from .checks import check_parts, check_run_folder, check_settings, pick_device, warn_of_settings
from .context import RunContext, make_context
from .data import all_labelled, load_source, load_target, make_source
from .questions import check_questions


def dry_run(config: RunConfig, reporter: Reporter | None = None) -> None:
    """Read the image set, build the network, and print what a run would do.

    No run folder is made, and no weights are downloaded.

    Args:
        config: The configuration.
        reporter: Prints the description.

    Raises:
        UserError: The run could not start; the message says why and what to do.
    """
    require_single_process("a dry run")
    check_settings(config)
    check_parts(config, 1)
    context = make_context(config, pick_device(config.device), reporter=reporter)
    warn_of_settings(config, context.reporter)
    images = load_target(context)
    check_run_folder(context.folder.path, images)
    check_questions(context, all_labelled(images.train))
    source = load_source(context, images)
    network, download = _network(context)
    check_method(context, images, source, network.features)
    lines = _describe_training(context, images, network)
    if download is not None:
        lines.append(
            f"a run would download the ImageNet weights of {network.name} to {download}; none were "
            "downloaded"
        )
    if source is not None:
        lines.append(_describe_source(context, source, network))
    if config.camstyle != "none":
        lines.append(_describe_styles(config, images))
    if config.method == "nnct":
        lines.append(_describe_labels(context, images, source, network))
    lines.append(f"a run would write into {context.folder.path}; none was started")
    for line in lines:
        context.reporter.line(line)


def _network(context: RunContext) -> tuple[ReIdNet, Path | None]:
    """Build the network of a run, and return the file of weights that the run would download.

    Where there is one, the weights of the network are random.
    """
    if context.config.weights == "imagenet":
        network = build_network(context, fresh=False)
        download = getattr(network.backbone, "imagenet_download", None)
        file = None if download is None else download()
        if file is not None:
            return network, file
    return build_network(context), None


def _pixels(config: RunConfig) -> int:
    """Return the bytes of a decoded image."""
    return 3 * config.image.height * config.image.width


def _describe_training(context: RunContext, images: ImageSet, network: ReIdNet) -> list[str]:
    """Describe the network, the batches and the memory of a run."""
    config = context.config
    image = config.image
    n = len(images.train)
    parameters = sum(p.numel() for p in network.parameters())
    iterations = iterations_per_epoch(config.batch.iterations, n, config.batch.size)
    gib = n * _pixels(config) / 2**30
    where = "memory" if gib <= image.store_gib else "a memory-mapped file"
    return [
        f"{config.method} with {network.name}, {parameters / 1e6:.2f} M parameters, "
        f"{network.features} features, {context.device}",
        context.precision.describe(),
        f"{config.epochs} epochs of {iterations} batches of {config.batch.size} images at "
        f"{image.height} x {image.width}",
        f"training pixels {gib:.2f} GiB in {where}, "
        f"feature memory {4 * n * network.features / 2**30:.2f} GiB",
    ]


def _describe_source(context: RunContext, source: ImageSet, network: ReIdNet) -> str:
    """Describe how a labelled source is trained with."""
    config = context.config
    weight = config.adaptation.weight
    loss = "their identities are classes"
    if config.method == "nnct":
        loss = f"loss {1 - weight:g} x source + {weight:g} x target"
    norms = "BatchNorms of their own" if network.switch is not None else "shared BatchNorms"
    gib = len(source.train) * _pixels(config) / 2**30
    identities = counted(count(source.train).identities, "identity", "identities")
    return (
        f"each batch has as many images of the source {source.name} in addition "
        f"({identities}): {loss}, {norms}; {gib:.2f} GiB of pixels"
    )


def _describe_styles(config: RunConfig, images: ImageSet) -> str:
    """Describe the camera styles of the training images."""
    if missing := reason_without_styles(config.camstyle, images, images.train):
        return missing
    if config.camstyle != "files":
        return f"images are augmented in camera styles ({config.camstyle})"
    copies = len(match_copies(images.root / STYLE_COPIES, images.train)[0])
    gib = copies * _pixels(config) / 2**30
    where = "memory" if gib <= config.image.store_gib else "a memory-mapped file"
    return (
        f"images are augmented in camera styles, from {copies:,} copies: {gib:.2f} GiB in {where}"
    )


def _describe_labels(
    context: RunContext, images: ImageSet, source: ImageSet | None, network: ReIdNet
) -> str:
    """Describe the label memory of NNCT, and when it begins to predict labels."""
    config = context.config
    single = config.nnct.single_label
    if single >= config.epochs:
        return (
            f"single labels in all epochs: `nnct.single_label` {single} is not less than "
            f"`epochs` {config.epochs}"
        )
    labels = None if source is None else make_source(*identities_and_cameras(source.train))
    memory = build_nnct(context, len(images.train), labels, network.features).label_memory
    threshold = config.nnct.threshold
    above = "their usual similarity" if threshold == "auto" else f"{threshold:g}"
    return (
        f"label memory (PLMB) {memory.nbytes / 1e6:.1f} MB as {memory.layout}; single labels in "
        f"the first {single} epochs, then labels above {above}, and those of the "
        f"{config.neighbours_k} nearest"
    )
