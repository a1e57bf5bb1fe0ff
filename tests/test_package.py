"""The package as a whole: light to import, imports that point down, no options below cli.py."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastreid_al"


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout.strip()


def test_importing_is_light() -> None:
    heavy = ("torch", "numpy", "matplotlib", "argparse", "rich", "PIL", "yaml")
    code = f"import fastreid_al, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run(code) == "[]"
    used = "import fastreid_al as f, sys; f.data.load; f.methods.UCAL; "
    used += "print([m for m in {} if m in sys.modules])"
    assert run(used.format(("matplotlib", "yaml"))) == "[]"


#: The packages from the bottom up; each imports only from those before it, and from `EVERYWHERE`.
LAYERS = (
    ("distributed",),
    ("data", "models", "clustering", "memory", "synthetic"),
    ("metrics", "answers", "retrieval"),
    ("active", "engine", "exports"),
    ("annotators", "methods", "labels", "reports", "server"),
    ("runs",),
)
EVERYWHERE = {
    "__version__",
    "arguments",
    "config",
    "errors",
    "files",
    "locks",
    "native",
    "optional",
    "plugins",
    "settings",
    "settings_file",
}
ALLOWED = {
    package: EVERYWHERE | {package} | {name for below in LAYERS[: level + 1] for name in below}
    for level, layer in enumerate(LAYERS)
    for package in layer
}


def test_every_package_has_a_layer() -> None:
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_down_the_layers(package: str) -> None:
    for file in (PACKAGE / package).rglob("*.py"):
        depth = len(file.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == depth:
                name = (node.module or node.names[0].name).split(".")[0]
                assert name in ALLOWED[package], f"{file.name} imports {name}"


#: Modules that know options.
KNOW_OPTIONS = {
    *("cli.py", "__main__.py", "settings_page.py", "train.py", "evaluate.py", "simulate.py"),
    *("ledger.py", "synthesize.py", "doctor.py"),
}
#: Options of torchrun and pip.
FOREIGN = re.compile(r"--(nproc-per-node|max-restarts|force-reinstall|no-deps)")


def test_library_code_does_not_spell_options() -> None:
    offenders = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.parent == PACKAGE and file.name in KNOW_OPTIONS:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and re.search(r"--[a-z]", FOREIGN.sub("", text)):
                offenders.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {text.strip()[:60]}")
    assert offenders == [], "\n".join(["name settings by key in backquotes:", *offenders])
