"""The parts of `bench/gpu_check.py`: what each runs, in which order, and for how long at most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
#: "goals": each benchmark at the size for which it has a goal. The others are those of the
#: benchmarks.
SCALES = ("goals", "tiny", "small", "market", "msmt17", "million")
#: Seconds of a part that is not listed.
USUAL = 10.0


class Part(NamedTuple):
    """A part of the check.

    Args:
        name: Its name, unique.
        kind: "tests", "proven", "kernels", "bench" or "exercises".
        limit: Seconds after which it is stopped.
        file: What it runs, relative to the root; for exercises the tool around them, or nothing.
        scale: Size of the problems.
        only: Expression that selects among the tests or benchmarks of the file, as of `pytest -k`;
            of exercises a part of the name.
    """

    name: str
    kind: str
    limit: float
    file: str
    scale: str = ""
    only: str = ""


#: Seconds of the files with GPU tests, in order; the others follow by name.
TESTS = {
    "test_kernels.py": 140.0,
    "test_memory_gpu.py": 10.0,
    "test_jaccard_gpu.py": 10.0,
    "test_dbscan_gpu.py": 10.0,
    "test_kmedoids_gpu.py": 15.0,
    "test_norm_gpu.py": 20.0,
    "test_nnct_gpu.py": 15.0,
    "test_pseudo_labels_gpu.py": 15.0,
    "test_train_gpu.py": 30.0,
    "test_nnct_ranks_gpu.py": 25.0,
    "test_ranks_clustering_gpu.py": 20.0,
}
#: What of a file an interpreter runs in seconds, for the tiny scale; of the others all is run.
TINY = {
    "test_kernels": "do_not_exist",
    "test_jaccard_gpu": "has_a_cuda_part or not_finite",
    "test_dbscan_gpu": "malformed",
    "test_kmedoids_gpu": "not_finite",
    "test_nnct_gpu": "moves_between",
    "test_pseudo_labels_gpu": "outside",
    "test_augment_gpu": "equals",
    "test_ranking_gpu": "tf32",
    "test_rank_gallery_gpu": "False",
    "test_refine_gpu": "random",
    "test_norm_gpu": "does_not_wait",
    "test_loader_gpu": "too_large",
    "exercises": "plmb",
    "bench_similarity_topk": "float32 and not ieee",
    "bench_bank_contrast_loss": "bfloat16 and not classes",
    "bench_plmb": "update",
    "bench_pseudo_labels": "ours",
    "bench_kmedoids": "groupings and root",
    "bench_multilabel_bank_loss": "float32 and ours",
    "bench_label_prediction": "float32 and ours",
    "bench_update_bank": "8x2 and float32",
    "bench_grouped_norm": "float32 and ours",
    "bench_neighbours": "ours",
    "bench_ranking": "ours and not ranked",
    "bench_linkage": "ours",
    "bench_cosine_dbscan": "ours",
    "bench_rounds": "gain",
    "bench_questions": "merges",
    "bench_train_step": "60-float32-0",
    "bench_nnct_step": "ours",
    "bench_epoch": "ucal",
}
#: Benchmarks of operators in order: file, seconds, scale, selection.
OPERATORS = (
    ("similarity_topk", 50.0, "million", "not chunked"),
    ("bank_contrast_loss", 50.0, "million", "x100000x"),
    ("plmb", 20.0, "msmt17", ""),
    ("pseudo_labels", 25.0, "msmt17", ""),
    ("kmedoids", 25.0, "msmt17", ""),
    ("similarity_topk", 40.0, "million", "chunked"),
    ("pseudo_labels", 75.0, "million", "1000000"),
    ("multilabel_bank_loss", 15.0, "msmt17", ""),
    ("label_prediction", 20.0, "msmt17", ""),
    ("update_bank", 15.0, "msmt17", ""),
    ("grouped_norm", 25.0, "msmt17", ""),
    ("neighbours", 15.0, "msmt17", ""),
    ("ranking", 15.0, "msmt17", ""),
    ("linkage", 15.0, "msmt17", ""),
    ("cosine_dbscan", 15.0, "msmt17", ""),
    ("questions", 15.0, "msmt17", ""),
    ("rounds", 10.0, "msmt17", ""),
)
#: Benchmarks of whole steps and epochs.
STEPS = (
    ("train_step", 40.0, "msmt17", ""),
    ("nnct_step", 40.0, "msmt17", ""),
    ("epoch", 120.0, "msmt17", ""),
)
#: Processes and libraries of a CPU, and a search, which on a GPU is that of bench_similarity_topk.
ON_CPU = ("bench_extraction.py", "bench_search.py", "bench_sharded_labels.py")
#: Tools around the exercises of the extension, and seconds.
EXERCISES = {"": 15.0, "memcheck": 40.0, "racecheck": 40.0}


def all_parts(scale: str) -> list[Part]:
    """Every part at a scale, in order: what is worth most comes first."""
    operators = [_bench(*entry, scale) for entry in OPERATORS]
    steps = [_bench(*entry, scale) for entry in STEPS]
    known = {Path(part.file).name for part in (*operators, *steps)}
    found = sorted(path.name for path in (ROOT / "bench").glob("bench_*.py"))
    others = [
        _bench(name[len("bench_") : -len(".py")], USUAL, "msmt17", "", scale)
        for name in found
        if name not in known and name not in ON_CPU
    ]
    parts = [
        *_tests(scale),
        Part("proven", "proven", 25.0, "bench/proven_share.py", _sized(scale, "goals")),
        Part("kernels", "kernels", 45.0, "bench/kernel_times.py", _sized(scale, "goals")),
        *operators,
        *others,
        *steps,
        *(
            Part(tool or "exercises", "exercises", limit, tool, scale, _only("exercises", scale))
            for tool, limit in EXERCISES.items()
        ),
    ]
    # At one scale a file is one part.
    return list({part.name: part for part in reversed(parts)}.values())[::-1]


def _sized(scale: str, own: str) -> str:
    return own if scale == "goals" else scale


def _tests(scale: str) -> list[Part]:
    """The files with tests marked gpu."""
    files = {path.name: path for path in sorted((ROOT / "tests" / "gpu").glob("test_*.py"))}
    order = [*TESTS, *(name for name in files if name not in TESTS)]
    return [
        Part(
            Path(name).stem,
            "tests",
            TESTS.get(name, USUAL),
            str(files[name].relative_to(ROOT)),
            scale,
            _only(name, scale),
        )
        for name in order
        if name in files
    ]


def _only(name: str, scale: str) -> str:
    return TINY.get(Path(name).stem, "") if scale == "tiny" else ""


def _bench(name: str, limit: float, own: str, only: str, scale: str) -> Part:
    """A benchmark; those of the goals select among the sizes and forms of a file."""
    file = f"bench/bench_{name}.py"
    if scale != "goals":
        return Part(f"bench_{name}", "bench", limit, file, scale, _only(f"bench_{name}", scale))
    suffix = f"@{only.replace(' ', '-')}" if only in ("chunked", "1000000") else ""
    return Part(f"bench_{name}{suffix}", "bench", limit, file, own, only)


def chosen(parts: Sequence[Part], names: Iterable[str]) -> list[Part]:
    """The parts that are named, by the part or by its file, with or without `.py`.

    Raises:
        ValueError: A name fits no part.
    """
    wanted = {name.removesuffix(".py") for name in names}
    fits = {part.name: {part.name, Path(part.file).stem} for part in parts}
    unknown = wanted - set().union(*fits.values())
    if unknown:
        raise ValueError(
            f"got the unknown part {min(unknown)}; `--list` prints the names of all parts"
        )
    return [part for part in parts if not wanted or fits[part.name] & wanted]
