"""What is looked at before anything slow is done: settings, device, image set."""

from __future__ import annotations

import math

import torch

from ..clustering import check_backend
from ..clustering.ivf import check_library
from ..config import AdaptationConfig, EvaluationConfig, NNCTConfig, RunConfig, StyleConfig
from ..data import ImageSet, describe, load
from ..engine.console import Reporter
from ..errors import UserError


def check_settings(config: RunConfig) -> None:
    """Refuse settings that cannot work.

    Raises:
        UserError: In one line.
    """
    wanted = {
        "--epochs": (config.epochs >= 1, "1 or more"),
        "--batch.size": (config.batch.size >= 2, "2 or more"),
        "--batch.per-identity": (
            config.method == "nnct" or 1 <= config.batch.per_identity <= config.batch.size,
            "1 to --batch.size",
        ),
        "--batch.iterations": (config.batch.iterations >= 0, "0 or more"),
        "--image.height": (config.image.height >= 16, "16 or more"),
        "--image.width": (config.image.width >= 16, "16 or more"),
        "--network.bn-group": (
            config.network.bn_group == 0 or config.network.bn_group >= 2,
            "0, or 2 and more",
        ),
        "--seed": (config.seed >= 0, "0 or more"),
        "--evaluate-every": (config.evaluate_every >= 0, "0 or more"),
        "--image.pad": (0 <= config.image.pad <= 64, "0 to 64"),
        "--image.flip": (0 <= config.image.flip <= 1, "0 to 1"),
        "--image.erase": (0 <= config.image.erase <= 1, "0 to 1"),
        "--image.erase-area": (
            0 < config.image.erase_area[0] <= config.image.erase_area[1] <= 1,
            "[low,high] above 0, up to 1",
        ),
        "--image.erase-aspect": (
            0 < config.image.erase_aspect[0] <= config.image.erase_aspect[1],
            "[low,high] above 0",
        ),
        "--image.crop-area": (
            0 < config.image.crop_area[0] <= config.image.crop_area[1] <= 1,
            "[low,high] above 0, up to 1",
        ),
        "--image.crop-aspect": (
            0 < config.image.crop_aspect[0] <= config.image.crop_aspect[1],
            "[low,high] above 0",
        ),
        "--image.rotate": (0 <= config.image.rotate <= 180, "0 to 180"),
        "--style.probability": (
            config.style.probability is None or 0 <= config.style.probability <= 1,
            "0 to 1",
        ),
        "--style.band": (0 < config.style.band <= 0.5, "above 0, up to 0.5"),
        "--image.jitter": (0 <= config.image.jitter <= 1, "0 to 1"),
        "--image.store-gib": (config.image.store_gib >= 0, "0 or more"),
        "--cluster.k1": (config.cluster.k1 >= 1, "1 or more"),
        "--cluster.k2": (1 <= config.cluster.k2 <= config.cluster.k1, "1 to --cluster.k1"),
        "--cluster.min-samples": (config.cluster.min_samples >= 1, "1 or more"),
        "--cluster.eps-gap": (config.cluster.eps_gap >= 0, "0 or more"),
        "--cluster.eps": (
            config.cluster.eps - config.cluster.eps_gap >= 0
            and config.cluster.eps + config.cluster.eps_gap < 1,
            "--cluster.eps-gap to less than 1 - --cluster.eps-gap",
        ),
        "--memory.temperature": (config.memory.temperature > 0, "above 0"),
        "--memory.momentum": (
            config.memory.momentum is None or 0 <= config.memory.momentum <= 1,
            "0 to 1",
        ),
        "--questions.start": (config.questions.start >= 0, "0 or more"),
        "--questions.budget": ((config.questions.budget or 0) >= 0, "0 or more"),
        "--questions.per-epoch": ((config.questions.per_epoch or 0) >= 0, "0 or more"),
        "--questions.l-max": (config.questions.l_max >= 1, "1 or more"),
        "--questions.delta": (0 <= config.questions.delta <= 1, "0 to 1"),
        "--questions.merge-share": (0 <= config.questions.merge_share <= 1, "0 to 1"),
        "--questions.confirm-merges": (config.questions.confirm_merges >= 0, "0 or more"),
        "--nnct.threshold": (-1 < config.nnct.threshold < 1, "between -1 and 1"),
        "--nnct.at-least": (config.nnct.at_least >= 1, "1 or more"),
        "--nnct.lambda-n": (config.nnct.lambda_n >= 0, "0 or more"),
        "--nnct.delta": (config.nnct.delta >= 0, "0 or more"),
        "--nnct.hard-ratio": (0 <= config.nnct.hard_ratio <= 1, "0 to 1"),
        "--nnct.single-label": (config.nnct.single_label >= 0, "0 or more"),
        "--nnct.momentum": (0 <= config.nnct.momentum <= 1, "0 to 1"),
        "--nnct.capacity": (config.nnct.capacity >= 1, "1 or more"),
        "--neighbours-k": (
            0 <= config.neighbours_k <= 1024,
            "0 to 1024, and less than the training images",
        ),
        "--adaptation.weight": (0 <= config.adaptation.weight <= 1, "0 to 1"),
        "--optimizer.momentum": (0 <= config.optimizer.momentum < 1, "0 to less than 1"),
        "--optimizer.backbone-lr": (
            config.optimizer.backbone_lr is None or config.optimizer.backbone_lr > 0,
            "above 0",
        ),
        "--optimizer.lr": (config.optimizer.lr > 0, "above 0"),
        "--optimizer.step": (config.optimizer.step >= 1, "1 or more"),
        "--optimizer.gamma": (config.optimizer.gamma > 0, "above 0"),
        "--optimizer.weight-decay": (config.optimizer.weight_decay >= 0, "0 or more"),
    }
    for option, (fine, range_) in wanted.items():
        if not fine:
            raise UserError(f"{option} is out of range: expected {range_}")
    if config.source is not None and config.method == "supervised":
        raise UserError("--source is for --method ucal and nnct; leave it out with supervised")
    if config.method == "ucal":
        try:
            check_backend(config.cluster.dbscan, name="--cluster.dbscan")
            if config.cluster.neighbours == "ivf":
                check_library(pick_device(config.device).type)
        except ValueError as error:
            raise UserError(str(error)) from error


def check_parts(config: RunConfig, ranks: int) -> None:
    """Refuse batches that do not divide into identities, the parts of ranks, groups of BatchNorm; and what ranks cannot share.

    Raises:
        UserError: In one line, with sizes that do.
    """
    cluster = config.cluster
    if ranks > 1 and config.method == "ucal" and cluster.dbscan not in ("auto", "graph"):
        raise UserError(
            f"--cluster.dbscan {cluster.dbscan} runs in a process alone; with {ranks} ranks give graph"
        )
    if ranks > 1 and config.method == "ucal" and cluster.neighbours != "exact":
        raise UserError(
            f"--cluster.neighbours {cluster.neighbours} runs in a process alone; with {ranks} ranks give exact"
        )
    size, group = config.batch.size, config.network.bn_group
    each = 1 if config.method == "nnct" else config.batch.per_identity
    if size % each:
        raise UserError(
            f"--batch.size {size} is no multiple of --batch.per-identity {each}: give {size - size % each} or "
            f"{size - size % each + each}"
        )
    if group > size and ranks == 1:
        return
    step = ranks * max(group, 1)
    if size % step:
        parts = f"{ranks} ranks" + (f" of groups of --network.bn-group {group}" if group else "")
        what = parts if ranks > 1 else f"groups of --network.bn-group {group}"
        wanted = math.lcm(step, each)
        below, above = size - size % wanted, size - size % wanted + wanted
        near = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"--batch.size {size} does not divide into {what}: give {near}")


def warn_of_settings(config: RunConfig, reporter: Reporter) -> None:
    """Name settings that do nothing, without being wrong."""
    image = config.image
    if (
        image.crop_area != (1.0, 1.0)
        and image.crop_area[0] * image.crop_aspect[0] > image.height / image.width
    ):
        reporter.warn(
            f"no random crop will be made: at {image.height} x {image.width} none has "
            f"--image.crop-area {list(image.crop_area)} and --image.crop-aspect {list(image.crop_aspect)}"
        )
    idle = {
        "--source-root and --adaptation.* do nothing without --source": config.source is None
        and (config.source_root != "data" or config.adaptation != AdaptationConfig()),
        "--neighbours-k and --nnct.* do nothing without --method nnct": config.method != "nnct"
        and (config.neighbours_k != 1 or config.nnct != NNCTConfig()),
        "--style.* does nothing without --camstyle": config.camstyle == "none"
        and config.style != StyleConfig(),
    }
    for text, said in idle.items():
        if said:
            reporter.warn(text)


def pick_device(name: str) -> torch.device:
    """The device that a setting names; auto is CUDA where there is one.

    Raises:
        UserError: No such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"--device {name} is not a device; give auto, cpu, cuda or cuda:N"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported; give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(
            f"--device {name}: {torch.cuda.device_count()} CUDA devices are here; give --device cpu or auto"
        )
    return device


def load_images(config: RunConfig | EvaluationConfig, reporter: Reporter) -> ImageSet:
    """Read the image set of a run, and print its counts."""
    with reporter.progress("drawing", 0) as update:
        images = load(
            config.dataset or "synthetic",
            config.data_root,
            synthetic=config.synthetic,
            verbose=False,
            on_progress=update,
        )
    for line in describe(images):
        reporter.line(line)
    return images
