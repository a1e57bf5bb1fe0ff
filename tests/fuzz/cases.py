"""Cases: a function or a kind of files, a seed, and mutations; each is repeatable by its line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st

from fastreid_al.errors import UserError

from . import files, kernels, library
from .outcomes import REFUSED, RIGHT, WRONG, Outcome, as_tensors, equal, of_error
from .roles import mutations
from .schema import Schema

SCHEMAS: dict[str, Schema] = {
    **{f"reid_kernels.{name}": schema for name, schema in kernels.SCHEMAS.items()},
    **{f"fastreid_al.{name}": schema for name, schema in library.SCHEMAS.items()},
}
#: Cases that are generated at a time.
_PART = 1000
#: Of ten cases, so many are calls of functions; the others are files.
CALLS = 7


@dataclass(frozen=True)
class Case:
    """One case.

    Args:
        subject: A name of `SCHEMAS` or of `files.KINDS`.
        seed: Seed of the valid arguments or of the changes.
        changes: For a function pairs of argument and mutation, for files names of changes; none
            for valid input.
    """

    subject: str
    seed: int
    changes: tuple[Any, ...] = ()

    @property
    def area(self) -> str:
        """Row of the table."""
        if self.subject in files.KINDS:
            return files.KINDS[self.subject].area
        return "kernels" if self.subject.startswith("reid_kernels") else "library"

    def line(self) -> str:
        """The case as text, which `--case` takes."""
        return json.dumps(asdict(self))

    @classmethod
    def of_line(cls, line: str) -> Case:
        fields = json.loads(line)
        changes = (tuple(x) if isinstance(x, list) else x for x in fields["changes"])
        return cls(fields["subject"], fields["seed"], tuple(changes))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case."""
    seed = draw(st.integers(0, 2**32 - 1))
    if draw(st.integers(1, 10)) > CALLS:
        kind = draw(st.sampled_from(sorted(files.KINDS)))
        changes = draw(st.lists(st.sampled_from(files.CHANGES), max_size=2))
        return Case(kind, seed, tuple(changes))
    name = draw(st.sampled_from(sorted(SCHEMAS)))
    roles = SCHEMAS[name].roles
    arguments = draw(st.lists(st.sampled_from(sorted(roles)), max_size=2, unique=True))
    pairs = [(a, draw(st.sampled_from(sorted(mutations(roles[a]))))) for a in arguments]
    return Case(name, seed, tuple(pairs))


def generated(runs: int, seed: int) -> list[Case]:
    """So many cases, the same for a seed."""
    made: list[Case] = []
    # In parts: the time of one grows faster than its number of cases.
    for part in range(0, runs, _PART):
        made += _part(min(_PART, runs - part), hash((seed, part)))
    return made


def _part(runs: int, seed: int) -> list[Case]:
    made: list[Case] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=runs,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def collect(case: Case) -> None:
        made.append(case)

    collect()
    return made[:runs]


def outcome(case: Case, scratch: Path) -> Outcome:
    """Run a case in this process."""
    if case.subject in files.KINDS:
        return _outcome_of_files(case, scratch)
    return _outcome_of_call(case)


def _outcome_of_files(case: Case, scratch: Path) -> Outcome:
    kind = files.KINDS[case.subject]
    folder = files.copy_of(case.subject, scratch / "valid", scratch / "case")
    changes = [change for change in case.changes if change not in kind.without]
    files.mutate(folder, changes, np.random.default_rng(case.seed))
    try:
        kind.read(folder)
    except UserError as error:
        if not case.changes:
            return Outcome(WRONG, f"valid files were refused: {error}")
        return of_error(error, ())
    except Exception as error:
        found = of_error(error, ())
        # A reader of files has no arguments to name: it says what the user can do.
        return Outcome("unclear", found.text) if found.kind == REFUSED else found
    return Outcome(RIGHT)


def _made(schema: Schema, seed: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(seed)
    return schema.make(np.random.default_rng(seed))


def _outcome_of_call(case: Case) -> Outcome:
    schema = SCHEMAS[case.subject]
    arguments = _made(schema, case.seed)
    expected = _mutate(arguments, case, schema)
    words = {*schema.roles, *schema.words}
    try:
        result = schema.call(**arguments)
    except Exception as error:
        found = of_error(error, words)
        if found.kind == REFUSED and not expected - {"same"}:
            return Outcome(WRONG, f"valid arguments were refused: {found.text}")
        return found
    if "refused" in expected:
        if len(case.changes) == 1 and schema.leaves_out(arguments):
            return Outcome(RIGHT)
        return Outcome(WRONG, "taken without an error")
    if "any" in expected:
        return Outcome(RIGHT)
    if case.subject.startswith("reid_kernels."):
        # Its operators return arrays for arrays.
        result = as_tensors(result)
    if "same" in expected and not equal(result, schema.call(**_made(schema, case.seed))):
        return Outcome(WRONG, "another result than for the same values as a tensor")
    if not schema.right(_made(schema, case.seed), result):
        return Outcome(WRONG, "another result than the reference")
    return Outcome(RIGHT)


def _mutate(arguments: dict[str, Any], case: Case, schema: Schema) -> set[str]:
    """Change arguments; return what has to happen: a subset of "same", "refused" and "any"."""
    random = np.random.default_rng([case.seed, 1])
    expected: set[str] = set()
    for name, change in case.changes:
        mutation = mutations(schema.roles[name])[change]
        before = arguments.get(name)
        after = mutation.change(before, random)
        arguments[name] = after
        if after is before or (before is None and mutation.expected == "same"):
            expected.add("any")
        else:
            expected.add(mutation.expected)
    return expected


def of_lines(lines: Sequence[str]) -> Iterator[Case]:
    return map(Case.of_line, lines)
