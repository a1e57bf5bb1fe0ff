"""Every public function has a schema, and 2,000 fuzzed cases end in a result or a clear error."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import reid_kernels

import fastreid_al
from tests.fuzz import cases, files, kernels, library
from tests.fuzz.cases import Case, generated, outcome
from tests.fuzz.outcomes import GOOD
from tests.fuzz.roles import mutations
from tests.fuzz.runner import Finding, run

#: Seed and number of the cases that run in CI.
SEED = 0
RUNS = 2000


def packages() -> Iterator[str]:
    """Every package of the library with `__all__`, as its name under it."""
    prefix = f"{fastreid_al.__name__}."
    for module in pkgutil.walk_packages(fastreid_al.__path__, prefix):
        if module.ispkg and hasattr(importlib.import_module(module.name), "__all__"):
            yield module.name.removeprefix(prefix)


def public_names() -> set[str]:
    names = {f"reid_kernels.{name}" for name in reid_kernels.__all__}
    for package in packages():
        for name in importlib.import_module(f"fastreid_al.{package}").__all__:
            names.add(f"fastreid_al.{package}.{name}")
    return names


def known_names() -> set[str]:
    others = {f"reid_kernels.{name}" for name in kernels.OTHERS}
    return {*cases.SCHEMAS, *others, *(f"fastreid_al.{name}" for name in library.OTHERS)}


def test_every_public_name_has_a_schema_or_a_reason() -> None:
    missing = public_names() - known_names()
    assert not missing, "add schemas to tests/fuzz/library.py or kernels.py, or reasons to OTHERS"


def test_no_reason_is_given_for_a_name_that_is_gone() -> None:
    others = {f"fastreid_al.{name}" for name in library.OTHERS}
    others |= {f"reid_kernels.{name}" for name in kernels.OTHERS}
    assert others <= public_names()


@pytest.mark.parametrize("name", sorted(cases.SCHEMAS))
def test_valid_arguments_are_right(name: str, tmp_path: Path) -> None:
    for seed in range(2):
        found = outcome(Case(name, seed), tmp_path)
        assert found.kind == "right", found.text


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(cases.SCHEMAS))
def test_every_mutation_of_every_argument_is_right_or_clearly_refused(
    name: str, tmp_path: Path
) -> None:
    findings = []
    for argument, role in cases.SCHEMAS[name].roles.items():
        for change in mutations(role):
            # What could take long or much memory runs in a worker, below.
            if change not in ("large", "huge"):
                case = Case(name, 1, ((argument, change),))
                found = outcome(case, tmp_path)
                if found.kind not in GOOD:
                    findings.append(Finding(case, found))
    assert not findings, shown(findings)


@pytest.mark.parametrize("kind", sorted(files.KINDS))
def test_valid_files_are_read(kind: str, tmp_path: Path) -> None:
    found = outcome(Case(kind, 0), tmp_path)
    assert found.kind == "right", found.text


def test_a_case_is_repeated_by_its_line() -> None:
    case = Case("reid_kernels.class_index", 3, (("classes", "None"),))
    assert Case.of_line(case.line()) == case


def test_what_is_wrong_is_found() -> None:
    report = run([Case("npz", 0), Case("nothing of this name", 0)])
    assert [found.kind for _, found in report.findings] == ["unclear"]
    assert report.counts[".npz files", "right"] == 1


def shown(findings: list[Finding]) -> str:
    lines = [f"{found.kind}: {found.text}\n  {case.line()}" for case, found in findings[:20]]
    how = "repeat one by: python -m tests.fuzz --case 'LINE'"
    return "\n".join([f"{len(findings)} findings; {how}", *lines])


@pytest.mark.slow
def test_fuzzed_cases_are_right_or_clearly_refused() -> None:
    report = run(generated(RUNS, SEED))
    assert not report.findings, shown(report.findings)
