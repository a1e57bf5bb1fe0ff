"""Every setting of a run, as frozen dataclasses: the only configuration type of the project.

Each field states everything about its setting: default, help, range, whether it may change when a
run is resumed, and when it is read (see `settings`). Library code takes these objects, or plain
arguments, and never sees a parser; `cli` turns a command line or a YAML file into one `RunConfig`.
The defaults are the settings of the UCAL paper (Sec. 4.2) and, where the paper is silent, of SpCL,
on which UCAL is based. `recipe` returns the defaults of one image set and one method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from .plugins import ANNOTATORS, DATASETS, MODELS, STRATEGIES
from .settings import documented, group, like, required, setting, unless, when

MethodName = Literal["ucal", "nnct", "supervised"]
Recipe = Literal["auto", "paper", "small", "reid"]
SameCamera = Literal["exclude", "include"]
StyleName = Literal["none", "colour", "fourier", "files"]
TestFeatures = Literal["bn", "pool5"]

_ASKING = unless("ask", "none")
#: Strategies of other packages may read the constants of UCAL's rules, too.
_UCAL_RULES = when("ask", "ucal")
_DBSCAN = when("cluster.algorithm", "dbscan")


@documented
@dataclass(frozen=True)
class SyntheticConfig:
    """The synthetic set: its size, its cameras and its seed."""

    train_identities: int = setting(64, "People in the training split (40 to 1,041 and more).")
    train_images: int = setting(
        1280, "Images of the training split, spread over identities and cameras."
    )
    test_identities: int = setting(
        64, "People in the query and gallery splits, none of them in the training split."
    )
    query_images: int = setting(192, "Images of the query split.")
    gallery_images: int = setting(960, "Images of the gallery split.")
    cameras: int = setting(6, "Number of cameras.")
    height: int = setting(
        128, "Height of a rendered crop in pixels; the width is about half of it."
    )
    seed: int = setting(
        0, "Seed of the whole set. The same seed renders the same set on every machine."
    )
    cast: float = setting(1.0, "Strength of the cameras' colour casts; 1 is mild, 4 is strong.")


#: MSMT17's own counts: 1,041 + 3,060 identities, 15 cameras, 126,441 images.
MSMT17_SIZE = SyntheticConfig(1041, 32_621, 3060, 11_659, 82_161, 15, 256)


@documented
@dataclass(frozen=True)
class ImageConfig:
    """Pixels: their size, where they are kept, and how they are augmented."""

    height: int = setting(256, "Height that every image is resized to.", at_least=16)
    width: int = setting(128, "Width that every image is resized to.", at_least=16)
    store_gib: float = setting(
        4.0,
        "Decoded pixels of a split stay in memory up to this many GiB; a larger split goes to a "
        "memory-mapped file.",
        at_least=0,
        resumable=True,
    )
    cache: str = setting(
        "auto",
        "Where decoded pixels are kept for later runs, by the content of the images: in this "
        "folder, nowhere (none), or in the user's cache folder (auto).",
        resumable=True,
        path=True,
    )
    cache_gib: float = setting(
        64.0,
        "Size of that folder in GiB, above which the pixels that were used longest ago are "
        "removed.",
        at_least=0,
        resumable=True,
        only=unless("image.cache", "none"),
    )
    place: Literal["auto", "device", "host"] = setting(
        "auto",
        "Where batches are read from: the device (device), host memory that is copied to the "
        "device while it computes (host), or the first of the two that has room (auto).",
        resumable=True,
    )
    crop_area: tuple[float, float] = setting(
        (1.0, 1.0),
        "Smallest and largest share of the image's area that a random crop keeps, which is then "
        "enlarged to the full size; [1,1] leaves the crop out.",
        above=0,
        at_most=1,
    )
    flip: float = setting(0.5, "Probability of a horizontal flip.", at_least=0, at_most=1)
    rotate: float = setting(
        0.0,
        "Largest angle of a random rotation, in degrees; 0 leaves it out.",
        at_least=0,
        at_most=180,
    )
    pad: int = setting(
        10,
        "Pixels of black border from which a crop of the original size is taken; 0 leaves it out.",
        at_least=0,
        at_most=64,
    )
    erase: float = setting(0.5, "Probability of random erasing.", at_least=0, at_most=1)
    erase_area: tuple[float, float] = setting(
        (0.02, 0.4), "Smallest and largest share of the image that is erased.", above=0, at_most=1
    )
    jitter: float = setting(
        0.0,
        "Strength of a random change of brightness, contrast and colour balance; 0 (the paper) "
        "leaves it out.",
        at_least=0,
        at_most=1,
    )

    removed: ClassVar[Mapping[str, str]] = {
        "store_dir": "the memory-mapped file lies in the run folder",
        "crop_aspect": "height / width of a random crop is between 2 and 3",
        "erase_aspect": "height / width of an erased box is between 0.3 and 3.33",
    }


@documented
@dataclass(frozen=True)
class NetworkConfig:
    """The network above the choice of its backbone."""

    pool: Literal["avg", "gem"] = setting(
        "avg", "Pooling of the last feature map of a ResNet: average, or generalised mean."
    )
    bn_group: int = setting(
        16,
        "Images that one BatchNorm sees in training; 0 is the whole batch. UCAL's published "
        "numbers were made with 16.",
        at_least=2,
        also=(0,),
    )
    domain_bn: bool = setting(
        True,
        "Normalise the images of a labelled source by BatchNorms of their own (SpCL).",
        only=unless("source", None),
    )
    test_features: TestFeatures = setting(
        "bn",
        "Features that are ranked: after the last BatchNorm (bn), or pooled ones before it "
        "(pool5, as NNCT does).",
    )
    osnet_fc: bool = setting(
        True,
        "Keep OSNet's fully connected layer above its pooling; NNCT removes it.",
        only=unless("model", "resnet18", "resnet34", "resnet50", "resnet101"),
    )


@documented
@dataclass(frozen=True)
class StyleConfig:
    """Training images in the styles of other cameras."""

    probability: float | None = setting(
        None,
        "Probability that an image is shown in the style of another camera",
        unset="one of all cameras, the image's own included, is chosen uniformly",
        at_least=0,
        at_most=1,
    )
    band: float = setting(
        0.02,
        "Share of the frequencies in either direction, from the lowest on, that fourier changes; "
        "the mean alone where that is less than one frequency.",
        above=0,
        at_most=0.5,
        only=when("camstyle", "fourier"),
    )

    removed: ClassVar[Mapping[str, str]] = {"space": "colour styles are matched in CIELAB"}


@documented
@dataclass(frozen=True)
class BatchConfig:
    """Batches: P identities x K images, or images at random."""

    size: int = setting(
        64,
        "Images in a batch; with a labelled source the batch has as many images of the source "
        "again.",
        at_least=2,
    )
    per_identity: int = setting(
        4,
        "K, the images of one identity in a batch; nnct takes images at random.",
        at_least=1,
        at_most="batch.size",
        only=when("method", "ucal", "supervised"),
    )
    iterations: int = setting(
        400, "Batches in an epoch; 0 is one pass over the images.", at_least=0
    )


@documented
@dataclass(frozen=True)
class ClusterConfig:
    """Features, Jaccard distance, and what makes clusters of it."""

    camera_norm: Literal["none", "centre", "standardise"] = setting(
        "none",
        "Before the clustering, subtract each camera's mean from its features (centre), and divide "
        "by its standard deviation (standardise), or leave the features as they are (none).",
        resumable=True,
    )
    whiten: int = setting(
        0,
        "Times that the images are clustered and their features then whitened by the covariance "
        "inside the clusters, before they are clustered for good.",
        at_least=0,
        at_most=10,
        resumable=True,
    )
    algorithm: Literal["dbscan", "linkage"] = setting(
        "dbscan",
        "What makes the clusters: DBSCAN with self-paced selection (dbscan, SpCL), or average "
        "linkage (linkage).",
        resumable=True,
    )
    join: float = setting(
        0.35,
        "Average linkage joins two clusters while the mean Jaccard similarity of their pairs is at "
        "least this.",
        above=0,
        at_most=1,
        resumable=True,
        only=when("cluster.algorithm", "linkage"),
    )
    k1: int = setting(
        30,
        "Neighbours in a k-reciprocal list, the image itself included.",
        at_least=1,
        resumable=True,
    )
    k2: int = setting(
        6,
        "Neighbours that the weights are averaged over, the image itself included.",
        at_least=1,
        at_most="cluster.k1",
        resumable=True,
    )
    eps: float = setting(0.60, "DBSCAN's radius.", resumable=True, only=_DBSCAN)
    eps_gap: float = setting(
        0.02,
        "The tight and the loose clustering are made at eps - eps_gap and eps + eps_gap.",
        at_least=0,
        resumable=True,
        only=_DBSCAN,
    )
    min_samples: int = setting(
        4,
        "Images within eps that make a core point, the image itself included.",
        at_least=1,
        resumable=True,
        only=_DBSCAN,
    )
    noise: Literal["singleton", "drop"] = setting(
        "singleton",
        "Images outside every cluster: classes of one image (singleton, SpCL), or left out of the "
        "epoch (drop, Cluster Contrast).",
        resumable=True,
    )
    tracks: Literal["must_link", "none"] = setting(
        "must_link",
        "Images of one track under one camera are the same identity (must_link), or tracks are "
        "only shown with the images (none). Tracks are those of MARS, and a column of a manifest.",
        resumable=True,
    )
    source: Literal["memory", "extract"] = setting(
        "memory",
        "Cluster the feature memory (memory, SpCL), or features extracted anew in each epoch "
        "(extract, Cluster Contrast).",
        resumable=True,
    )
    dbscan: Literal["auto", "graph", "cuml"] = setting(
        "auto",
        "What runs DBSCAN; the labels are the same. graph (auto) is this package, on the CPU and "
        "on GPUs; cuml is cuML, up to 40,000 images, because it takes a dense n x n array.",
        replaced=(("sklearn", "auto"),),
        resumable=True,
        only=_DBSCAN,
    )
    neighbours: Literal["exact", "ivf"] = setting(
        "exact",
        "Neighbour lists of an exact search, or of an approximate one (ivf: FAISS, or cuVS on a "
        "GPU), whose recall is logged.",
        resumable=True,
    )

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """What must hold between settings: the key, whether it holds, and what is expected."""
        yield (
            "eps",
            self.eps - self.eps_gap >= 0 and self.eps + self.eps_gap < 1,
            "`cluster.eps_gap` to less than 1 - `cluster.eps_gap`",
        )


@documented
@dataclass(frozen=True)
class MemoryConfig:
    """The feature memory and the loss over it."""

    kind: Literal["instance", "cluster"] = setting(
        "instance",
        "One vector per image (instance, SpCL), or one per cluster (cluster, Cluster Contrast).",
    )
    momentum: float | None = setting(
        None,
        "Share of the old vector that an update keeps",
        unset="0.2 for instance and 0.1 for cluster",
        at_least=0,
        at_most=1,
    )
    hardest: bool = setting(
        False,
        "Update a cluster only by its least similar image of the batch.",
        only=when("memory.kind", "cluster"),
    )
    temperature: float = setting(0.05, "tau of Eq. 1.", above=0)
    one_read: bool = setting(
        False,
        "Compute the loss and its gradient from one read of the memory, with bfloat16 products; "
        "for one GPU of compute capability 9.0 or later, where its speed was not measured yet.",
        resumable=True,
        only=when("memory.kind", "cluster"),
    )


@documented
@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    name: Literal["adam", "sgd"] = setting("adam", "adam, or sgd with Nesterov momentum.")
    lr: float = setting(
        3.5e-4,
        "Learning rate of new layers: the last BatchNorm, the source's classifier.",
        above=0,
        resumable=True,
    )
    backbone_lr: float | None = setting(
        None, "Learning rate of the backbone", unset="`optimizer.lr`", above=0, resumable=True
    )
    momentum: float = setting(
        0.9,
        "Momentum of sgd.",
        at_least=0,
        below=1,
        resumable=True,
        only=when("optimizer.name", "sgd"),
    )
    weight_decay: float = setting(5e-4, "Weight decay.", at_least=0, resumable=True)
    step: int = setting(
        20,
        "The learning rates are multiplied by gamma after every so many epochs.",
        at_least=1,
        resumable=True,
    )
    gamma: float = setting(0.1, "That factor.", above=0, resumable=True)


@documented
@dataclass(frozen=True)
class EngineConfig:
    """How the work is done; nothing here changes what is computed, except for rounding."""

    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto",
        "Precision of the network's products: bfloat16 (bf16), float32, or by the device (auto: "
        "bf16 on a GPU, and on a CPU that has units for it). On a CPU it is that of training "
        "steps, and features are float32. Losses, memories and weights always are.",
        resumable=True,
    )
    compile: Literal["auto", "none", "default", "graphs"] = setting(
        "auto",
        "torch.compile of the network: never (none), with fused kernels (default), with these "
        "replayed as CUDA graphs (graphs), or by the device (auto: default on a GPU).",
        resumable=True,
    )
    deterministic: bool = setting(
        False,
        "The same bits from run to run on a GPU as well, at some cost in speed.",
        resumable=True,
    )
    extract_batch: int = setting(
        256, "Images in a batch of feature extraction.", at_least=1, resumable=True
    )
    flip_features: bool = setting(
        False,
        "A feature is the mean of those of the image and of its mirror image, at twice the cost.",
        resumable=True,
    )
    inference: Literal["auto", "torch", "openvino"] = setting(
        "auto",
        "Library that extracts features on a CPU: PyTorch (torch), OpenVINO (openvino), or by the "
        "network (auto: OpenVINO if it is installed, likely faster, and agrees with PyTorch).",
        resumable=True,
    )


@documented
@dataclass(frozen=True)
class NNCTConfig:
    """NNCT: label prediction (MPLP), multi-label loss (MMCL), pseudo-label memory bank (PLMB)."""

    threshold: float | Literal["auto"] = setting(
        0.6,
        "t of MPLP: similarities above it count; auto is the median similarity of an image to the "
        "last of its `nnct.at_least` nearest images, anew in each epoch.",
        above=-1,
        below=1,
        also=("auto",),
    )
    at_least: int = setting(
        10,
        "Most similar images that are candidates for a label of an image, when fewer are above "
        "the threshold.",
        at_least=1,
    )
    lambda_n: float = setting(0.5, "Weight of the neighbours' loss, lambda^n of Eq. 2.", at_least=0)
    delta: float = setting(5.0, "Weight of the positives in MMCL.", at_least=0)
    hard_ratio: float = setting(
        0.01,
        "Share of the negatives, the most similar ones, that enter the loss.",
        at_least=0,
        at_most=1,
    )
    single_label: int = setting(
        6,
        "Epochs at the start in which an image has itself as its only label, and no neighbours.",
        at_least=0,
    )
    momentum: float = setting(
        0.5,
        "Share of an old vector that an update of the feature memory keeps, times epochs done "
        "over epochs of the run.",
        at_least=0,
        at_most=1,
    )

    removed: ClassVar[Mapping[str, str]] = {
        "layout": "the layout is chosen by the number of images",
        "capacity": "a list of the sparse layout has room for 64 labels",
    }


@documented
@dataclass(frozen=True)
class AdaptationConfig:
    """Training with a labelled source as well."""

    weight: float = setting(
        0.3,
        "w of nnct, whose loss is (1 - w) x the source's cross-entropy + w x the target's; ucal "
        "adds the two.",
        at_least=0,
        at_most=1,
        only=when("method", "nnct"),
    )
    synthetic: SyntheticConfig = group(
        SyntheticConfig,
        "The synthetic set when it is the source.",
        only=when("source", "synthetic"),
        seed=1,
    )


@documented
@dataclass(frozen=True)
class QuestionConfig:
    """Questions to an annotator: when, how many, and what is made of the answers."""

    start: int = setting(15, "Epochs that train without questions.", at_least=0, resumable=True)
    budget: int | None = setting(
        None, "Questions of the whole run", unset="no limit", at_least=0, resumable=True
    )
    per_epoch: int | None = setting(
        None, "Questions of one epoch", unset="no limit", at_least=0, resumable=True
    )
    minutes: float | None = setting(
        None,
        "Minutes that the answers of the whole run may take",
        unset="no limit",
        at_least=0,
        resumable=True,
    )
    person: str | None = setting(
        None,
        "Name of the person at the terminal, which their answers are recorded with",
        unset="the login name",
        resumable=True,
        only=when("annotator", "terminal"),
    )
    aim: Literal["classes", "pairs"] = setting(
        "pairs",
        "What gain orders questions by: pairs corrects most pairs of images, with splits and "
        "merges; classes makes classes complete, with merges alone.",
        resumable=True,
        only=when("ask", "gain"),
    )
    sheet: int = setting(
        1,
        "Clusters that gain compares with one cluster at a time, if the annotator can answer such "
        "sheets; 1 asks about pairs.",
        at_least=1,
        at_most=100,
        resumable=True,
        only=when("ask", "gain"),
    )
    window: int | None = setting(
        None,
        "Questions that are open at a time. Answers are applied in the order of the questions",
        unset="3 for each person who answers on a page, 1 for others",
        at_least=1,
        at_most=1000,
        resumable=True,
    )
    wait: float | Literal["all", "none"] = setting(
        "all",
        "How long a round waits for people: all waits for every answer, a number for so many "
        "seconds without an answer, none not at all. The run then trains with the answers so far.",
        at_least=0,
        also=("all", "none"),
        resumable=True,
    )
    thumbnails: bool = setting(
        False,
        "Let the oracle also judge the small images beside the two of a question, as people may "
        "do on a page.",
        resumable=True,
        only=when("annotator", "oracle"),
    )
    second_vote: int | None = setting(
        None,
        "A merge of clusters of a and b images is decided by two people if a b is at least this",
        unset="one person decides",
        at_least=1,
        resumable=True,
    )
    k_max_rule: Literal["paper", "root"] = setting(
        "paper",
        "Most groups that a cluster S may be split into: sqrt(|S|/2)/2 (paper) or sqrt(|S|/2) "
        "(root).",
        resumable=True,
        only=_UCAL_RULES,
    )
    l_max: int = setting(
        10,
        "Most similar clusters of each cluster that a merge may be asked about.",
        at_least=1,
        resumable=True,
        only=_UCAL_RULES,
    )
    delta: float = setting(
        0.3,
        "Smallest normalised gap in the similarities of these at which the asking stops.",
        at_least=0,
        at_most=1,
        resumable=True,
        only=_UCAL_RULES,
    )
    merge_share: float = setting(
        0.2,
        "Most clusters that ucal merges in an epoch, as a share of all clusters.",
        at_least=0,
        at_most=1,
        resumable=True,
        only=_UCAL_RULES,
    )
    closure: Literal["transitive", "none"] = setting(
        "transitive",
        "transitive lets the answers answer what follows from them; none is the paper's label "
        "memory.",
        resumable=True,
    )
    must_links: Literal["compact", "clusters", "before"] = setting(
        "compact",
        "What images bring along that were answered same before their clusters were made: only "
        "clusters that they represent (compact), every cluster (clusters), which finds more pairs "
        "and spoils poor clusters, or no other image, because they enter the clustering as one "
        "(before).",
        resumable=True,
        replaced=(("after", "compact"),),
    )
    confirm_merges: int = setting(
        0,
        "Further questions about other images of two clusters that must agree before the clusters "
        "are merged.",
        at_least=0,
        resumable=True,
    )
    expected_error: float | None = setting(
        0.0,
        "Share of the answers that are expected to be wrong. Above 0, answers are weighed against "
        "each other and against the features, and an unlikely merge needs further answers about "
        "other images",
        unset="estimated for each annotator",
        at_least=0,
        at_most=1,
        resumable=True,
    )
    ledger: str | None = setting(
        None,
        "File, or PostgreSQL URL, that keeps the answers",
        unset="answers.sqlite in the run folder",
        resumable=True,
        path=True,
    )
    replay: str | None = setting(
        None,
        "Ledger of another run whose answers the replay annotator repeats.",
        resumable=True,
        only=when("annotator", "replay"),
        path=True,
    )


@documented
@dataclass(frozen=True)
class WebConfig:
    """The page on which people answer while a run trains."""

    host: str = setting(
        "127.0.0.1",
        "Address to listen on. Other machines reach the page only by another address.",
        resumable=True,
    )
    port: int = setting(8765, "Port to listen on.", at_least=0, at_most=65_535, resumable=True)
    people: str | None = setting(
        None,
        "People who get a personal link, with commas between, such as anna,ben:admin",
        unset="whoever has an account on this machine, without a link",
        resumable=True,
    )
    noun: str = setting(
        "person", "What an image shows, such as person, vehicle or animal.", resumable=True
    )
    show_similarity: bool = setting(
        False,
        "Show similarity and kind of each question, which may sway the answers.",
        resumable=True,
    )


@documented
@dataclass(frozen=True)
class OracleConfig:
    """The annotator that knows the true identities."""

    error: float = setting(
        0.0, "Share of the pairs that it gets wrong.", at_least=0, at_most=1, resumable=True
    )
    unsure: float = setting(
        0.0, "Share of the pairs that it is unsure about.", at_least=0, at_most=1, resumable=True
    )
    not_comparable: float = setting(
        0.0,
        "Share of the pairs that it calls not comparable.",
        at_least=0,
        at_most=1,
        resumable=True,
    )
    seed: int = setting(
        0, "Seed of these; the same pair always gets the same answer.", resumable=True
    )
    seconds: float = setting(
        0.0,
        "Seconds that each answer is counted for, such as the 4 that a person takes.",
        at_least=0,
        resumable=True,
    )
    seconds_more: float = setting(
        0.0,
        "Seconds that each further image of a sheet is counted for.",
        at_least=0,
        resumable=True,
    )

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """What must hold between settings: the key, whether it holds, and what is expected."""
        # Summed without rounding in between: 0.1 + 0.2 + 0.7 is 1.
        others = math.fsum((self.unsure, self.not_comparable))
        yield (
            "error",
            math.fsum((self.error, self.unsure, self.not_comparable)) <= 1,
            f"at most {max(0.0, 1 - others):g}, which `oracle.unsure` and `oracle.not_comparable` "
            "leave",
        )


@documented
@dataclass(frozen=True)
class ScoringConfig:
    """How the ranking of the test images is scored."""

    same_camera: SameCamera = setting(
        "exclude",
        "Whether gallery images of the query's identity and camera are left out (exclude), as for "
        "Market-1501, or count as matches (include).",
        resumable=True,
    )


@documented
@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    dataset: str = setting("synthetic", "The image set.", names=DATASETS)
    data_root: str = setting(
        "data",
        "The data root, or the set's own folder; not used by the synthetic set.",
        resumable=True,
        only=unless("dataset", "synthetic"),
        path=True,
    )
    camera_pattern: str | None = setting(
        None,
        "Regular expression that finds the camera in the name of a file, with its folders; its "
        "first group is the camera",
        unset="usual spellings are recognised",
        only=when("dataset", "folder"),
    )
    identity_pattern: str | None = setting(
        None,
        "Regular expression that finds the identity in the name of a file, with its folders; its "
        "first group is the identity",
        unset="folders are identities",
        only=when("dataset", "folder"),
    )
    tracklet_frames: int = setting(
        4, "Images of each tracklet.", at_least=1, only=when("dataset", "mars")
    )
    method: MethodName = setting(
        "ucal", "ucal; nnct; or supervised, ucal's upper bound with true labels."
    )
    neighbours_k: int = setting(
        1,
        'Nearest images whose labels train an image as well; 0 is the paper\'s "w/o NNCT".',
        at_least=0,
        at_most=1024,
        only=when("method", "nnct"),
    )
    source: str | None = setting(
        None,
        "A labelled image set to train with as well (unsupervised domain adaptation), or several, "
        "with commas between",
        unset="none",
        names=DATASETS,
        several=True,
    )
    source_root: str = setting(
        "data",
        "The source's data root, or its own folder; of several sources one for all, or one for "
        "each, with commas between.",
        resumable=True,
        only=unless("source", "synthetic", None),
        path=True,
    )
    camstyle: StyleName = setting(
        "none",
        "Show training images in the style of other cameras: by colour statistics (colour), by "
        "low-frequency amplitudes (fourier), from CamStyle's files next to the training images "
        "(files), or never (none).",
    )
    ask: str = setting(
        "none",
        "Which questions ucal asks an annotator: none, UCAL's two rules (ucal), those with the "
        "largest expected gain (gain), the farthest inside and nearest outside each cluster "
        "(spal), or random pairs (random).",
        names=STRATEGIES,
        also=("none",),
        resumable=True,
        only=when("method", "ucal"),
    )
    annotator: str = setting(
        "oracle",
        "Who answers: an oracle that knows the true identities, people on a page (web), a person "
        "at the terminal, or another run's ledger (replay).",
        names=ANNOTATORS,
        resumable=True,
        only=_ASKING,
    )
    model: str = setting("resnet50", "Backbone.", names=MODELS)
    weights: str = setting(
        "imagenet",
        "imagenet, none, or the path of a weights file.",
        resumable=True,
        path=True,
    )
    epochs: int = setting(50, "Epochs.", at_least=1, resumable=True)
    seed: int = setting(0, "Seed of weights, batches and augmentation.", at_least=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.", resumable=True)
    evaluate_every: int = setting(
        10,
        "Evaluate before training and after every so many epochs; 0 only after the last.",
        at_least=0,
        resumable=True,
    )
    run_dir: str | None = setting(
        None,
        "Folder of the run",
        unset="runs/DATASET-METHOD-TIME",
        resumable=True,
        path=True,
    )
    synthetic: SyntheticConfig = group(
        SyntheticConfig, "The synthetic set.", only=when("dataset", "synthetic")
    )
    image: ImageConfig = group(ImageConfig, "Pixels and augmentation.")
    style: StyleConfig = group(StyleConfig, "Camera styles.", only=unless("camstyle", "none"))
    network: NetworkConfig = group(NetworkConfig, "Pooling, BatchNorm, features that are ranked.")
    batch: BatchConfig = group(BatchConfig, "Batches.")
    cluster: ClusterConfig = group(
        ClusterConfig, "ucal's pseudo-labels.", only=when("method", "ucal")
    )
    memory: MemoryConfig = group(
        MemoryConfig,
        "Feature memory and loss of ucal and supervised.",
        only=when("method", "ucal", "supervised"),
    )
    nnct: NNCTConfig = group(
        NNCTConfig, "nnct's labels, memories and loss.", only=when("method", "nnct")
    )
    adaptation: AdaptationConfig = group(
        AdaptationConfig, "Training with a labelled source.", only=unless("source", None)
    )
    optimizer: OptimizerConfig = group(OptimizerConfig, "Optimizer and schedule.")
    questions: QuestionConfig = group(QuestionConfig, "Questions.", only=_ASKING)
    oracle: OracleConfig = group(OracleConfig, "The oracle.", only=when("annotator", "oracle"))
    web: WebConfig = group(
        WebConfig, "The page on which people answer.", only=when("annotator", "web")
    )
    evaluation: ScoringConfig = group(ScoringConfig, "Scores of the test images.")
    engine: EngineConfig = group(EngineConfig, "How the work is done.")
    tensorboard: bool = setting(
        False, "Also write the metrics for TensorBoard, into the run's folder.", resumable=True
    )
    profile: bool = setting(
        False,
        "Write a trace of some steps, and a table of the phases, into the run's folder.",
        resumable=True,
    )

    removed: ClassVar[Mapping[str, str]] = {
        "evaluate_untrained": "the untrained network is evaluated unless `evaluate_every` is 0"
    }

    def relations(self) -> Iterator[tuple[str, bool, str]]:
        """What must hold between settings: the key, whether it holds, and what is expected."""
        yield (
            "source",
            self.source is None or self.method != "supervised",
            "none with `method` supervised; a source is for ucal and nnct",
        )


@documented
@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation."""

    checkpoint: str = required(
        "Folder of a run, last.pt or best.pt of one, a network exported as safetensors, or a bare "
        "weights file.",
        path=True,
    )
    dataset: str | None = like(
        RunConfig,
        "dataset",
        None,
        unset="that of the run whose folder holds the checkpoint, or synthetic,",
    )
    data_root: str = like(RunConfig, "data_root")
    camera_pattern: str | None = like(RunConfig, "camera_pattern")
    identity_pattern: str | None = like(RunConfig, "identity_pattern")
    tracklet_frames: int = like(RunConfig, "tracklet_frames")
    model: str | None = like(
        RunConfig,
        "model",
        None,
        help="Backbone of a bare weights file",
        unset="that of the checkpoint",
    )
    pool: Literal["avg", "gem"] = like(
        NetworkConfig, "pool", help="Pooling of a bare weights file: avg or gem."
    )
    test_features: TestFeatures | None = like(
        NetworkConfig, "test_features", None, unset="the checkpoint's own, or bn,"
    )
    height: int | None = like(ImageConfig, "height", None, unset="the checkpoint's own, or 256,")
    width: int | None = like(ImageConfig, "width", None, unset="the checkpoint's own, or 128,")
    store_gib: float = like(ImageConfig, "store_gib")
    device: str = like(RunConfig, "device")
    synthetic: SyntheticConfig = group(SyntheticConfig, "The synthetic set.")
    save_features: str | None = setting(
        None,
        "Also write features, identities, cameras and paths of all images into this file, "
        ".npz or .safetensors.",
        path=True,
    )
    save_rankings: str | None = setting(
        None,
        "Also write the first gallery images of every query into this file, .csv or .parquet.",
        path=True,
    )
    force: bool = setting(
        False, "Replace the files of `save_features` and `save_rankings` if they exist."
    )
    rerank: bool = setting(
        False, "Rank by k-reciprocal re-ranking (Zhong et al., CVPR 2017) as well."
    )
    evaluation: ScoringConfig = group(ScoringConfig, "Scores of the test images.")
    engine: EngineConfig = group(EngineConfig, "How the work is done.")

    removed: ClassVar[Mapping[str, str]] = {
        "store_dir": "the memory-mapped file lies in the system's temporary folder"
    }


@documented
@dataclass(frozen=True)
class SimulationConfig:
    """Questions on fixed features, without training."""

    features: str = required(
        ".npz or .safetensors file with features (n, D), identities (n,) and optionally cameras "
        "(n,), as an evaluation with `save_features` writes it.",
        path=True,
    )
    ask: str = setting("ucal,gain,spal,random", "Strategies, separated by commas.")
    budget: int = setting(1000, "Questions of each strategy.", at_least=0)
    every: int = setting(25, "Questions between two points of the curve.", at_least=1)
    out: str = setting("simulation", "Folder of curves.csv and curves.png.", path=True)
    cluster: ClusterConfig = group(ClusterConfig, "The clusters to begin from.")
    questions: QuestionConfig = group(
        QuestionConfig, "Constants of the rules; questions of one round."
    )
    oracle: OracleConfig = group(OracleConfig, "The oracle.")


#: What an export writes of the training images of a run.
LabelForm = Literal["labels", "imagefolder", "market1501", "fiftyone", "label-studio"]
#: What an export writes of the network of a run.
NetworkForm = Literal[
    "onnx", "openvino", "torchscript", "torch-export", "safetensors", "torchreid", "boxmot"
]


@documented
@dataclass(frozen=True)
class ExportConfig:
    """One export of a run's labels or network."""

    run: str = required("Folder of a run, or a checkpoint in it.", path=True)
    what: Literal[
        "labels",
        "imagefolder",
        "market1501",
        "fiftyone",
        "label-studio",
        "onnx",
        "openvino",
        "torchscript",
        "torch-export",
        "safetensors",
        "torchreid",
        "boxmot",
    ] = required(
        "What to write: the identities of the training images as a table (labels), as folders "
        "(imagefolder, market1501) or for an annotation tool (fiftyone, label-studio); otherwise "
        "the network."
    )
    out: str = required("File or folder to write.", path=True)
    force: bool = setting(False, "Replace the file or folder if it exists.")
    check: bool = setting(
        False,
        "Compare the features of an existing file `out` with those of the network. Write nothing.",
    )
    half: bool = setting(False, "Write the weights of an OpenVINO file in half precision.")
    copy: Literal["copy", "link"] = setting(
        "copy", "Write images into folders as copies (copy) or as symbolic links (link)."
    )
    data_root: str | None = setting(
        None, "The data root of the run's images, if moved", unset="that of the run", path=True
    )
    store_gib: float = like(ImageConfig, "store_gib")
    device: str = like(RunConfig, "device")
    engine: EngineConfig = group(EngineConfig, "How the work is done.")
    # The last one: in this class the name hides the function.
    like: str | None = setting(
        None,
        "Table of an earlier export, whose numbers the identities keep",
        unset="labels.csv of the run, if it exists,",
        path=True,
    )


@documented
@dataclass(frozen=True)
class ExtractionConfig:
    """One extraction of features."""

    checkpoint: str = required(
        "Folder of a run, last.pt or best.pt of one, or a bare weights file.", path=True
    )
    images: str = required(
        "A folder of images, an image, a list (.txt) with one path per line, or a manifest (.csv).",
        path=True,
    )
    out: str = required("File to write, .safetensors.", path=True)
    force: bool = setting(False, "Replace the file if it exists.")
    camera_pattern: str | None = like(RunConfig, "camera_pattern")
    model: str | None = like(EvaluationConfig, "model")
    pool: Literal["avg", "gem"] = like(EvaluationConfig, "pool")
    test_features: TestFeatures | None = like(EvaluationConfig, "test_features")
    height: int | None = like(EvaluationConfig, "height")
    width: int | None = like(EvaluationConfig, "width")
    device: str = like(RunConfig, "device")
    engine: EngineConfig = group(EngineConfig, "How the work is done.")


#: Most hits of a query, the limit of `reid_kernels.similarity_topk`.
MOST_HITS = 1024


@documented
@dataclass(frozen=True)
class SearchConfig:
    """One search of a gallery."""

    run: str = required("Folder of a run, or a checkpoint in it.", path=True)
    query: str = required(
        "An image, or a folder, a list (.txt) or a manifest (.csv) of images.", path=True
    )
    gallery: str = required("Folder of the images to search.", path=True)
    out: str = required("File to write, .csv, .json or .html.", path=True)
    top: int = setting(10, "Number of gallery images per query.", at_least=1, at_most=MOST_HITS)
    index: str | None = setting(
        None,
        "File of the gallery's features, which later searches reuse",
        unset="a file in the folder of the run, named after the gallery,",
        path=True,
    )
    false_match_rate: float = setting(
        0.01,
        "Share of the queries without a match in the gallery that may be taken for known. It sets "
        "the similarity below which a query is marked unknown.",
        above=0,
        below=1,
    )
    matches: float | None = setting(
        None,
        "Number of gallery images that show a query's identity, on average over the queries. The "
        "odds of a match are proportional to it",
        unset="as many as in the image set of the run, or proportionally fewer,",
        above=0,
    )
    force: bool = setting(False, "Replace the file if it exists.")
    data_root: str | None = like(ExportConfig, "data_root")
    device: str = like(RunConfig, "device")
    engine: EngineConfig = group(EngineConfig, "How the work is done.")


@documented
@dataclass(frozen=True)
class ReportConfig:
    """One report of one run or two."""

    run: str = required("Folder of a run.", path=True)
    out: str = required("File to write, .html.", path=True)
    other: str | None = setting(None, "Folder of a second run to compare", unset="none", path=True)
    force: bool = setting(False, "Replace the file if it exists.")
    anonymise: bool = setting(
        False,
        "Blur the upper third of every crop, number the annotators, and show paths in the settings "
        "without folders.",
    )
    clusters: int = setting(
        100, "Largest number of clusters to show, the least coherent first.", at_least=0
    )
    queries: int = setting(
        10, "Number of worst, of median and of best queries to show.", at_least=0
    )
    questions: int = setting(500, "Largest number of answers to show.", at_least=0)
    data_root: str | None = like(ExportConfig, "data_root")
    store_gib: float = like(ImageConfig, "store_gib")
    device: str = like(RunConfig, "device")
    engine: EngineConfig = group(EngineConfig, "How the work is done.")


@documented
@dataclass(frozen=True)
class AnnotationConfig:
    """One annotation server."""

    run: str = required(
        "Folder of a run, or its ledger: an SQLite file or a PostgreSQL URL.", path=True
    )
    data_root: str | None = setting(
        None,
        "Folder of the images. A ledger without its run needs it",
        unset="that of the run",
        path=True,
    )
    host: str = setting(
        "127.0.0.1", "Address to listen on. Other machines reach the page only by another address."
    )
    port: int = setting(8765, "Port to listen on.", at_least=0, at_most=65_535)
    people: str | None = setting(
        None,
        "People who get a personal link, with commas between, such as anna,ben:admin. Roles are "
        "annotate, review and admin",
        unset="whoever has an account on this machine, without a link,",
    )
    renew_links: bool = setting(
        False, "Make new links for `people` who have one; their old links end."
    )
    public_url: str | None = setting(
        None,
        "Address under which people reach the page through a proxy, such as "
        "https://labels.example.org",
        unset="none",
    )
    gold: str | None = setting(
        None,
        "CSV file of pairs whose answer is known (columns left, right, verdict, and sheet for "
        "those of a sheet), which are mixed among the questions to measure how often people err",
        unset="none",
        path=True,
    )
    gold_share: float = setting(
        0.05, "Share of a person's tasks whose answer is known.", at_least=0, at_most=1
    )
    gold_share_unsure: float = setting(
        0.2,
        "The same share while it is not known whether more than a tenth of the person's answers is "
        "wrong, as of a new person.",
        at_least=0,
        at_most=1,
    )
    second_votes: float = setting(
        0.05,
        "Share of a person's answers that a second person gives too, where one is on the page.",
        at_least=0,
        at_most=1,
    )
    second_votes_unsure: float = setting(
        0.3,
        "The same share while it is not known whether more than a tenth of the person's answers is "
        "wrong. 0 gives none to anybody.",
        at_least=0,
        at_most=1,
    )
    noun: str = setting("person", "What an image shows, such as person, vehicle or animal.")
    show_similarity: bool = setting(
        False, "Show similarity and kind of each question, which may sway the answers."
    )
    open: bool = setting(False, "Open the page in a browser.")


def recipe(
    dataset: str = "synthetic", name: Recipe = "auto", method: MethodName = "ucal"
) -> RunConfig:
    """Default settings for one image set and one method.

    Args:
        dataset: The image set.
        name: "paper" is Sec. 4.2 of UCAL, or Sec. 3.2 of NNCT; "small" trains a small network from
            random weights on a laptop's CPU in minutes; "reid" is for weights of a network that was
            trained on people elsewhere, and changes how UCAL clusters and asks; "auto" is "small"
            for the synthetic set and "paper" for every other.
        method: The method.

    Returns:
        A complete configuration.
    """
    small = name == "small" or (name == "auto" and dataset == "synthetic")
    if method == "nnct":
        return _small_nnct(dataset) if small else _paper_nnct(dataset)
    if small:
        return _small(dataset, method)
    return _reid(dataset, method) if name == "reid" else _paper(dataset, method)


def _paper(dataset: str, method: MethodName) -> RunConfig:
    """UCAL Sec. 4.2."""
    paper = RunConfig(dataset=dataset, method=method)
    return replace(paper, batch=BatchConfig(iterations=800)) if dataset == "msmt17" else paper


def _reid(dataset: str, method: MethodName) -> RunConfig:
    # Chosen on real images, see docs/results.md. The network knows people from the start, so that
    # it is worth asking soon, and clusters follow the current weights.
    return replace(
        _paper(dataset, method),
        cluster=ClusterConfig(
            algorithm="linkage", join=0.15, camera_norm="standardise", source="extract"
        ),
        questions=QuestionConfig(start=1, aim="classes", sheet=8),
    )


def _small(dataset: str, method: MethodName) -> RunConfig:
    # These values suit random weights, not ImageNet's. One BatchNorm over the batch, because the
    # statistics of 16 images differ too much from the running ones. Fresh features in each epoch,
    # because those of the memory age too fast. Short lists, because the first features are reliable
    # only for near neighbours.
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


def _paper_nnct(dataset: str) -> RunConfig:
    """NNCT Sec. 3.2 and, where it is silent, MMCL, on which it is based."""
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
        ),
        network=NetworkConfig(bn_group=0, domain_bn=False, test_features="pool5", osnet_fc=False),
        batch=BatchConfig(iterations=0),
        optimizer=OptimizerConfig(name="sgd", lr=0.1, backbone_lr=0.01, step=40),
    )


def _small_nnct(dataset: str) -> RunConfig:
    # Random weights again. Small images, because single labels need many passes; Adam; and a higher
    # threshold, because without ImageNet's features different people are more similar.
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
