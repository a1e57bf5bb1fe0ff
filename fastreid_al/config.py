"""Every setting of a run, as frozen dataclasses: the only configuration type of the project.

Library code takes these objects (or plain arguments) and never sees a parser; `fastreid_al.cli` turns a command line or a
YAML file into one `RunConfig`. The defaults are the settings of the UCAL paper (Sec. 4.2) and, where the paper is silent, of
SpCL, on which its base stands. `recipe` gives the defaults of one image set and one method.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Dataset = Literal["synthetic", "market1501", "dukemtmcreid", "msmt17", "folder"]
MethodName = Literal["ucal", "nnct", "supervised"]
Strategy = Literal["none", "ucal", "gain", "spal", "random"]
AnnotatorName = Literal["oracle", "terminal", "replay"]
Recipe = Literal["auto", "paper", "small"]
StyleName = Literal["none", "colour", "fourier", "files"]
TestFeatures = Literal["bn", "pool5"]
ModelName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "osnet_x1_0",
    "osnet_x0_75",
    "osnet_x0_5",
    "osnet_x0_25",
]


@dataclass(frozen=True)
class SyntheticConfig:
    """The synthetic set: its size, its cameras and its seed.

    Args:
        train_identities: People in the training split (40 to 1,041 and more).
        train_images: Images of the training split, spread over identities and cameras.
        test_identities: People in the query and gallery splits, none of them in the training split.
        query_images: Images of the query split.
        gallery_images: Images of the gallery split.
        cameras: Number of cameras.
        height: Height of a drawn crop in pixels; the width is about half of it.
        seed: Seed of the whole set. The same seed draws the same set on every machine.
        cast: Strength of the cameras' colour casts; 1 is mild, 4 is strong.
    """

    train_identities: int = 64
    train_images: int = 1280
    test_identities: int = 64
    query_images: int = 192
    gallery_images: int = 960
    cameras: int = 6
    height: int = 128
    seed: int = 0
    cast: float = 1.0


#: MSMT17's own counts: 1,041 + 3,060 identities, 15 cameras, 126,441 images.
MSMT17_SIZE = SyntheticConfig(1041, 32_621, 3060, 11_659, 82_161, 15, 256)


@dataclass(frozen=True)
class ImageConfig:
    """Pixels: their size, where they are kept, and how they are augmented.

    Args:
        height: Height that every image is resized to.
        width: Width that every image is resized to.
        store_gib: Decoded pixels of a split stay in memory up to this many GiB; a larger one goes to a memory-mapped file.
        store_dir: Folder of that file; the run directory when not given.
        cache: Decoded pixels are kept for later runs, by the content of the images: in this folder, nowhere (none), or in the
            user's cache folder (auto).
        cache_gib: Past this many GiB in that folder, the pixels that were used longest ago are removed.
        place: Where batches are read from: the device (device), memory that it copies from beside the step (host), or the
            first of the two that has room (auto).
        crop_area: Least and greatest share of the image's area that a random crop keeps, which is then enlarged to the whole;
            1 and 1 leave it out.
        crop_aspect: Least and greatest height / width of that crop.
        flip: Probability of a horizontal flip.
        rotate: Greatest angle of a random rotation, in degrees; 0 leaves it out.
        pad: Pixels of black border from which a crop of the original size is drawn; 0 leaves it out.
        erase: Probability of random erasing.
        erase_area: Least and greatest share of the image that is erased.
        erase_aspect: Least and greatest height / width of the erased box.
        jitter: Strength of a random change of brightness, contrast and colour balance; 0 (the paper) leaves it out.
    """

    height: int = 256
    width: int = 128
    store_gib: float = 4.0
    store_dir: str | None = None
    cache: str = "auto"
    cache_gib: float = 64.0
    place: Literal["auto", "device", "host"] = "auto"
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (2.0, 3.0)
    flip: float = 0.5
    rotate: float = 0.0
    pad: int = 10
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: tuple[float, float] = (0.3, 3.33)
    jitter: float = 0.0


@dataclass(frozen=True)
class NetworkConfig:
    """The network above the choice of its backbone.

    Args:
        pool: Pooling of the last feature map of a ResNet: average, or generalised mean.
        bn_group: Images that one BatchNorm sees in training; 0 is the whole batch. UCAL's published numbers were made with 16.
        domain_bn: Normalise the images of a labelled source by BatchNorms of their own (SpCL); no effect without --source.
        test_features: Features that are ranked: after the last BatchNorm (bn), or pooled ones before it (pool5, as NNCT does).
        osnet_fc: Keep OSNet's fully connected layer above its pooling; NNCT removes it.
    """

    pool: Literal["avg", "gem"] = "avg"
    bn_group: int = 16
    domain_bn: bool = True
    test_features: TestFeatures = "bn"
    osnet_fc: bool = True


@dataclass(frozen=True)
class StyleConfig:
    """Camera styles drawn in training (`--camstyle`).

    Args:
        probability: Probability that an image is drawn in the style of another camera; when not given, one of all cameras is
            drawn uniformly, the image's own (which changes nothing) included.
        space: Colour space in which colour matches the cameras: CIELAB, or the pixels' own RGB.
        band: Share of the frequencies in either direction, from the lowest on, that fourier changes, up to 0.5; the mean alone
            where that is less than one.
    """

    probability: float | None = None
    space: Literal["lab", "rgb"] = "lab"
    band: float = 0.02


@dataclass(frozen=True)
class BatchConfig:
    """Batches: P identities x K images, or images at random.

    Args:
        size: Images in a batch; with a labelled source as many again of the source.
        per_identity: K, the images drawn of one identity; nnct draws images at random.
        iterations: Batches in an epoch; 0 is one pass over the images.
    """

    size: int = 64
    per_identity: int = 4
    iterations: int = 400


@dataclass(frozen=True)
class ClusterConfig:
    """Jaccard distance, DBSCAN and self-paced selection.

    Args:
        k1: Neighbours in a k-reciprocal list, the image itself counted.
        k2: Neighbours that the weights are averaged over, the image itself counted.
        eps: DBSCAN's radius.
        eps_gap: The tight and the loose clustering are made at eps - eps_gap and eps + eps_gap.
        min_samples: Images within eps that make a core point, itself counted.
        noise: Images outside every cluster: classes of one image (SpCL), or left out of the epoch (Cluster Contrast).
        source: Cluster the feature memory (SpCL), or features freshly extracted at each epoch (Cluster Contrast).
        dbscan: What runs DBSCAN; the labels are the same. graph (auto) is this package, on the CPU and on GPUs; sklearn is
            scikit-learn; cuml is cuML, up to 40,000 images, because it takes a dense n x n array.
        neighbours: Neighbour lists of an exact search, or of an approximate one (ivf: FAISS, or cuVS on a GPU), whose recall
            goes into the log.
    """

    k1: int = 30
    k2: int = 6
    eps: float = 0.60
    eps_gap: float = 0.02
    min_samples: int = 4
    noise: Literal["singleton", "drop"] = "singleton"
    source: Literal["memory", "extract"] = "memory"
    dbscan: Literal["auto", "graph", "cuml", "sklearn"] = "auto"
    neighbours: Literal["exact", "ivf"] = "exact"


@dataclass(frozen=True)
class MemoryConfig:
    """The feature memory and the loss over it.

    Args:
        kind: One vector per image (SpCL), or one per cluster (Cluster Contrast).
        momentum: Share of the old vector that an update keeps; 0.2 for instance, 0.1 for cluster when not given.
        hardest: In the cluster memory, update a cluster only by its batch image least similar to it.
        temperature: tau of Eq. 1.
    """

    kind: Literal["instance", "cluster"] = "instance"
    momentum: float | None = None
    hardest: bool = False
    temperature: float = 0.05


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule.

    Args:
        name: adam, or sgd with Nesterov momentum.
        lr: Learning rate of new layers: the last BatchNorm, the source's classifier.
        backbone_lr: Learning rate of the backbone; lr when not given.
        momentum: Momentum of sgd.
        weight_decay: Weight decay.
        step: Epochs after which the learning rates are multiplied by gamma, again and again.
        gamma: That factor.
    """

    name: Literal["adam", "sgd"] = "adam"
    lr: float = 3.5e-4
    backbone_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    step: int = 20
    gamma: float = 0.1


@dataclass(frozen=True)
class EngineConfig:
    """How the work is done; none of it changes what is computed but for rounding.

    Args:
        precision: Of the network's products: bfloat16 (bf16), float32, or by the device (auto: bf16 on a GPU). Losses, memories
            and weights are float32.
        compile: torch.compile of the network: never (none), kernels fused (default), these replayed as CUDA graphs (graphs), or
            by the device (auto: default on a GPU).
        deterministic: The same bits from run to run on a GPU as well, at some cost in speed.
        extract_batch: Images that are extracted at a time.
        flip_features: A feature is the mean of those of the image and of its mirror image, at twice the cost.
    """

    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: Literal["auto", "none", "default", "graphs"] = "auto"
    deterministic: bool = False
    extract_batch: int = 256
    flip_features: bool = False


@dataclass(frozen=True)
class NNCTConfig:
    """NNCT: memory-based positive label prediction (MPLP), multi-label loss (MMCL), pseudo-label memory bank (PLMB).

    Args:
        threshold: t of MPLP: similarities above it count.
        at_least: Most similar images that are candidates for a label of an image, when fewer are above the threshold.
        lambda_n: Weight of the neighbours' loss, lambda^n of Eq. 2.
        delta: Weight of the positives in MMCL.
        hard_ratio: Share of the negatives, the most similar ones, that enter the loss.
        single_label: Epochs at the start in which an image has itself as its only label, and no neighbours.
        momentum: Share of an old vector that an update of the feature memory keeps, times epochs done over epochs of the run.
        layout: The pseudo-label memory bank (PLMB): bits (n x n bits), sparse (short lists), auto by the number of images.
        capacity: Labels that a list of the sparse layout has room for.
    """

    threshold: float = 0.6
    at_least: int = 10
    lambda_n: float = 0.5
    delta: float = 5.0
    hard_ratio: float = 0.01
    single_label: int = 6
    momentum: float = 0.5
    layout: Literal["auto", "bits", "sparse"] = "auto"
    capacity: int = 64


@dataclass(frozen=True)
class AdaptationConfig:
    """Training with a labelled source as well (`--source`).

    Args:
        weight: w of nnct, whose loss is (1 - w) x the source's cross-entropy + w x the target's. ucal adds the two as they are.
        synthetic: The synthetic set, where it is the source.
    """

    weight: float = 0.3
    synthetic: SyntheticConfig = field(default_factory=lambda: SyntheticConfig(seed=1))


@dataclass(frozen=True)
class QuestionConfig:
    """Questions to an annotator: when, how many, and what is made of the answers.

    Args:
        start: Epochs that train without questions.
        budget: Questions of the whole run; no limit when not given.
        per_epoch: Questions of one epoch; no limit when not given.
        k_max_rule: Most groups that a cluster S may be split into: sqrt(|S|/2)/2 (paper) or sqrt(|S|/2) (root).
        l_max: Most similar clusters of each cluster that a merge may be asked about.
        delta: Least normalised gap in the similarities of these at which the asking stops.
        merge_share: Most clusters that ucal merges in an epoch, as a share of all.
        closure: transitive lets the answers answer what follows from them; none is the paper's label memory.
        confirm_merges: Further questions about other images of two clusters that must agree before they are merged.
        ledger: File, or PostgreSQL URL, that keeps the answers; answers.sqlite in the run folder when not given.
        replay: Ledger of another run whose answers the replay annotator gives.
    """

    start: int = 15
    budget: int | None = None
    per_epoch: int | None = None
    k_max_rule: Literal["paper", "root"] = "paper"
    l_max: int = 10
    delta: float = 0.3
    merge_share: float = 0.2
    closure: Literal["transitive", "none"] = "transitive"
    confirm_merges: int = 0
    ledger: str | None = None
    replay: str | None = None


@dataclass(frozen=True)
class OracleConfig:
    """The annotator that knows the true identities.

    Args:
        error: Share of the pairs that it gets wrong.
        unsure: Share of the pairs that it is unsure about.
        not_comparable: Share of the pairs that it calls not comparable.
        seed: Seed of these; the same pair always gets the same answer.
    """

    error: float = 0.0
    unsure: float = 0.0
    not_comparable: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Args:
        dataset: The image set.
        data_root: The data root, or the set's own folder; not used by the synthetic set.
        method: ucal; nnct; or supervised, ucal's upper bound with true labels.
        neighbours_k: Nearest images whose labels train an image as well, in nnct; 0 is the paper's "w/o NNCT".
        source: A labelled image set to train with as well (unsupervised domain adaptation); none when not given.
        source_root: The source's data root, or its own folder.
        camstyle: Draw training images in the style of other cameras: by colour statistics (colour), by low-frequency amplitudes
            (fourier), from CamStyle's files beside the training images (files), or never (none).
        ask: Which questions ucal asks an annotator: none, UCAL's two rules (ucal), those with the best expected gain (gain),
            the farthest inside and nearest outside each cluster (spal), or random pairs (random).
        annotator: Who answers: an oracle that knows the true identities, a person at the terminal, or another run's ledger.
        model: Backbone.
        weights: imagenet, none, or the path of a weights file.
        epochs: Epochs.
        seed: Seed of weights, batches and augmentation.
        device: auto, cpu, cuda or cuda:N.
        evaluate_every: Evaluate after each so many epochs; 0 only after the last.
        evaluate_untrained: Evaluate once before training as well.
        run_dir: Folder of the run; runs/DATASET-METHOD-TIME when not given.
        synthetic: The synthetic set.
        image: Pixels and augmentation.
        style: Camera styles.
        network: Pooling, BatchNorm, features that are ranked.
        batch: Batches.
        cluster: ucal's pseudo-labels.
        memory: ucal's feature memory and loss.
        nnct: nnct's labels, memories and loss.
        adaptation: Training with a labelled source.
        optimizer: Optimizer and schedule.
        questions: Questions.
        oracle: The oracle.
        engine: How the work is done.
        tensorboard: Also write the metrics for TensorBoard, into the run's folder.
        profile: Write a trace of some steps, and a table of the phases, into the run's folder.
    """

    dataset: Dataset = "synthetic"
    data_root: str = "data"
    method: MethodName = "ucal"
    neighbours_k: int = 1
    source: Dataset | None = None
    source_root: str = "data"
    camstyle: StyleName = "none"
    ask: Strategy = "none"
    annotator: AnnotatorName = "oracle"
    model: ModelName = "resnet50"
    weights: str = "imagenet"
    epochs: int = 50
    seed: int = 0
    device: str = "auto"
    evaluate_every: int = 10
    evaluate_untrained: bool = True
    run_dir: str | None = None
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    style: StyleConfig = field(default_factory=StyleConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    nnct: NNCTConfig = field(default_factory=NNCTConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    questions: QuestionConfig = field(default_factory=QuestionConfig)
    oracle: OracleConfig = field(default_factory=OracleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tensorboard: bool = False
    profile: bool = False


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation.

    Args:
        checkpoint: last.pt or best.pt of a run, or a bare weights file.
        dataset: The image set; when not given that of the run whose folder holds the checkpoint, or synthetic.
        data_root: The data root, or the set's own folder; not used by the synthetic set.
        model: Backbone of a bare weights file; a checkpoint knows its own.
        pool: Pooling of a bare weights file: avg or gem.
        test_features: Features that are ranked; the checkpoint's own, or bn, when not given.
        height: Height of the images; the checkpoint's own, or 256, when not given.
        width: Width of the images; the checkpoint's own, or 128, when not given.
        store_gib: Decoded pixels of a split stay in memory up to this many GiB; a larger one goes to a memory-mapped file.
        store_dir: Folder of that file; the system's temporary folder when not given.
        device: auto, cpu, cuda or cuda:N.
        synthetic: The synthetic set.
        save_features: Also write features, identities and cameras of the training images into this .npz file.
        rerank: Rank by k-reciprocal re-ranking (Zhong et al., CVPR 2017) as well.
        engine: How the work is done.
    """

    checkpoint: str
    dataset: Dataset | None = None
    data_root: str = "data"
    model: ModelName | None = None
    pool: Literal["avg", "gem"] = "avg"
    test_features: TestFeatures | None = None
    height: int | None = None
    width: int | None = None
    store_gib: float = 4.0
    store_dir: str | None = None
    device: str = "auto"
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    save_features: str | None = None
    rerank: bool = False
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True)
class SimulationConfig:
    """Questions on fixed features, without training.

    Args:
        features: .npz file with features (n, D) and identities (n,); `evaluate --save-features` writes one.
        ask: Strategies, with commas between: ucal, gain, spal, random.
        budget: Questions of each strategy.
        every: Questions between two points of the curve.
        out: Folder of curves.csv and curves.png.
        cluster: The clusters to begin from.
        questions: Constants of the rules; questions of one round.
        oracle: The oracle.
    """

    features: str
    ask: str = "ucal,gain,spal,random"
    budget: int = 1000
    every: int = 25
    out: str = "simulation"
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    questions: QuestionConfig = field(default_factory=QuestionConfig)
    oracle: OracleConfig = field(default_factory=OracleConfig)


def recipe(
    dataset: Dataset = "synthetic", name: Recipe = "auto", method: MethodName = "ucal"
) -> RunConfig:
    """Default settings for one image set and one method.

    Args:
        dataset: The image set.
        name: "paper" is Sec. 4.2 of UCAL, or Sec. 3.2 of NNCT; "small" trains a small network from random weights on a laptop's
            CPU in minutes; "auto" is "small" for the synthetic set and "paper" for every other.
        method: The method.

    Returns:
        A complete configuration.
    """
    small = name == "small" or (name == "auto" and dataset == "synthetic")
    if method == "nnct":
        return _small_nnct(dataset) if small else _paper_nnct(dataset)
    return _small(dataset, method) if small else _paper(dataset, method)


def _paper(dataset: Dataset, method: MethodName) -> RunConfig:
    """UCAL Sec. 4.2."""
    paper = RunConfig(dataset=dataset, method=method)
    return replace(paper, batch=BatchConfig(iterations=800)) if dataset == "msmt17" else paper


def _small(dataset: Dataset, method: MethodName) -> RunConfig:
    # Random weights, not ImageNet's, decide these values: one BatchNorm over the batch, because statistics of 16 images
    # swing too far from the running ones; fresh features at each epoch, because the memory's age too fast; short lists,
    # because the first features are right about near neighbours alone.
    return RunConfig(
        dataset=dataset,
        method=method,
        model="resnet18",
        weights="none",
        epochs=8,
        evaluate_every=4,
        image=ImageConfig(height=96, width=48, pad=5, jitter=0.4),
        network=NetworkConfig(bn_group=0),
        batch=BatchConfig(iterations=40),
        cluster=ClusterConfig(k1=12, k2=3, eps=0.5, noise="drop", source="extract"),
        memory=MemoryConfig(kind="cluster", temperature=0.1),
        optimizer=OptimizerConfig(lr=4e-4, step=7),
        questions=QuestionConfig(start=2, k_max_rule="root"),
    )


def _paper_nnct(dataset: Dataset) -> RunConfig:
    """NNCT Sec. 3.2 and, where it is silent, MMCL, on which it stands."""
    return RunConfig(
        dataset=dataset,
        method="nnct",
        epochs=60,
        camstyle="files",
        image=ImageConfig(
            crop_area=(0.64, 1.0),
            rotate=10,
            pad=0,
            jitter=0.2,
            erase_area=(0.02, 0.2),
            erase_aspect=(0.3, 3.33),
        ),
        network=NetworkConfig(bn_group=0, domain_bn=False, test_features="pool5", osnet_fc=False),
        batch=BatchConfig(iterations=0),
        optimizer=OptimizerConfig(name="sgd", lr=0.1, backbone_lr=0.01, step=40),
    )


def _small_nnct(dataset: Dataset) -> RunConfig:
    # Random weights again: a small image, for single images teach slowly and take many passes; Adam; and a higher threshold,
    # because without ImageNet's features the similarities of different people are higher.
    paper = _paper_nnct(dataset)
    return replace(
        paper,
        model="resnet18",
        weights="none",
        epochs=12,
        evaluate_every=4,
        camstyle="colour",
        image=replace(paper.image, height=64, width=32, jitter=0.4),
        nnct=NNCTConfig(threshold=0.7, single_label=3),
        optimizer=OptimizerConfig(lr=4e-4, step=10),
    )
