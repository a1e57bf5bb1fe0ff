"""README and docs/: examples run, options exist, pages are reachable, words are the field's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
FEATURES = DOCS / "annotation_features.md"
EXECUTED = [
    ROOT / "README.md",
    *(DOCS / f"{page}.md" for page in ("python", "kernels", "extending")),
]

FENCE = re.compile(
    r"(?P<mark><!-- not executed: [^>]*-->\n+)?^(?P<indent> *)```python\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?:#[^)]*)?\)")
#: A source file or folder in backquotes: `engine/loop.py`, `bench/results/`.
FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|h|cpp|cu)|(?:[a-z_.]+/)+)`")
#: A test in backquotes, by its file below tests/: `answers/test_x.py::test_y`.
TEST = re.compile(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`")
#: Placeholders, and files of the reader's own.
EXAMPLE_FILE = re.compile(
    r"\bX\b|_X\.|\bX_|_NAME\.|^my_|tensorboard/|epoch_labels/|last-N/|camstyle/"
)
OPTION = re.compile(r"(?<![\w-])--(?P<name>[a-z][\w-]*(?:\.[a-z][\w-]*)*)(?P<group>\.\*)?")
#: Command lines that print every option.
HELP = (
    ["train", "--help-all"],
    ["evaluate", "--help"],
    *([name, "--help"] for name in ("export", "extract", "search", "report", "simulate")),
    ["annotate", "--help"],
    ["synthesize", "--help"],
    *(["ledger", name, "--help"] for name in ("show", "export", "import", "undo", "check")),
)
#: Options of other programs: torchrun, pip, pytest, mkdocs, git, the scripts of bench/, Slurm.
FOREIGN = {
    *("standalone", "nproc-per-node", "nnodes", "max-restarts"),
    *("rdzv-backend", "rdzv-id", "rdzv-endpoint"),
    *("strict", "check", "inplace", "benchmark-only", "benchmark-json", "scale"),
    "benchmark-timer",
    *("json", "plot", "figure", "undocumented", "runs", "case"),
    *("out", "arms", "sizes", "seeds", "iterations", "step", "start"),  # of bench/real/run.py
    "per-epoch",  # also of bench/real/run.py
    *("list", "failed", "again", "only", "features"),  # of bench/gpu_check.py
    "table",  # of bench/questions/marks.py
    "minutes",
    *("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "signal"),
}
PRIVATE_WORDS = re.compile(
    r"drawn (set|world)|\bcorridors?\b|\bhouse\b|\b(one|the|this) room\b(?! for)|_ROOMS"
    r"|found [^\"]{,40}, wanted|\bin peace\b|\ba process alone\b|\bLikewise\b|begun? anew",
    re.IGNORECASE,
)
CODE = ("fastreid_al", "kernels", "csrc", "bench", "tests")
SUFFIXES = {".py", ".md", ".h", ".cpp", ".cu"}


def blocks(page: Path) -> Iterator[str]:
    """The Python examples of a page that are meant to run."""
    for got in FENCE.finditer(page.read_text()):
        if got["mark"] is None:
            yield textwrap.dedent(got["code"])


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page))
    assert code, f"{page.name} has no example that runs"
    script = tmp_path / "example.py"
    script.write_text(code)
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 600


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/]+\.md", yaml.safe_dump(yaml.safe_load(navigation())))
    assert sorted(listed) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def navigation() -> str:
    """The nav of mkdocs.yml as YAML."""
    return (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text()) if not t.startswith(("http:", "https:"))]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    named = [name for name in FILE.findall(page.read_text()) if not EXAMPLE_FILE.search(name)]
    assert [name for name in named if not exists(name)] == []


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    missing = []
    for name, test in TEST.findall(page.read_text()):
        file = ROOT / "tests" / name
        found = file.is_file() and re.search(rf"^ *def {test}\(", file.read_text(), re.MULTILINE)
        if not found:
            missing.append(f"{name}::{test}")
    assert missing == []


def test_every_feature_of_annotation_names_its_test() -> None:
    rows = re.findall(r"^\| (\d+) \|(.*)$", FEATURES.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    assert [number for number, row in rows if not TEST.search(row)] == []


def exists(name: str) -> bool:
    """Whether a path stands in the tree, or in a package; a bare file name may be anywhere."""
    if any((root / name).exists() for root in (ROOT, ROOT / "fastreid_al", ROOT / "kernels")):
        return True
    return "/" not in name and any(next((ROOT / top).rglob(name), None) for top in (*CODE, "docs"))


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of every command, as its help prints it."""
    got: set[str] = set()
    for words in HELP:
        done = subprocess.run(
            [sys.executable, "-m", "fastreid_al", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        got |= {name for name, _ in OPTION.findall(done.stdout)}
    return {name.replace("_", "-") for name in got}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_the_options_of_a_page_exist(page: Path, options: set[str]) -> None:
    for name, group in OPTION.findall(page.read_text()):
        plain = name.replace("_", "-")
        if group:
            known = any(option.startswith(f"{plain}.") for option in options)
        else:
            known = plain in options or plain in FOREIGN
        assert known, f"{page.name} names --{name}{group}, which no command takes"


@pytest.mark.parametrize("page", [*TEXTS, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_pages_keep_to_the_words_of_the_field(page: Path) -> None:
    assert PRIVATE_WORDS.findall(page.read_text()) == []


@pytest.mark.parametrize("top", CODE)
def test_code_keeps_to_the_words_of_the_field(top: str) -> None:
    files = [f for f in sorted((ROOT / top).rglob("*")) if f.suffix in SUFFIXES]
    lines = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        if file != Path(__file__)
        for line in file.read_text().splitlines()
        if PRIVATE_WORDS.search(line)
    ]
    assert lines == []
