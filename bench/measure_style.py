"""Measure the style of Python code: `python bench/measure_style.py NAME=FOLDER ...`.

Prints one column per folder: sizes of files and functions, parameters, docstrings, annotations,
comments, long lines, and constructs that make a line dense. With `--undocumented` it also lists the
public functions and classes without a docstring. Files are parsed, never imported or run.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = 100
LONG_FUNCTION = 50
WIDE_FUNCTION = 3
SKIPPED = {"build", "site-packages", "__pycache__"}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Counts:
    """What was counted in one folder.

    Args:
        file_lines: Lines of each file.
        function_lines: Lines of each function, its signature and docstring included.
        code_lines: Lines of each function without its docstring.
        parameters: Parameters of each function, without self and cls.
        annotated: Functions with an annotated return type.
        public: Public functions and classes.
        undocumented: Those of them without a docstring, as "FILE:LINE NAME".
        wide: Public functions with three or more parameters.
        with_args: Those of them whose docstring has an Args section.
        comments: Comments.
        long_lines: Lines of more than 100 columns.
        assignments: Assignments.
        tuple_assignments: Assignments of a tuple to several targets: `a, b = x, y`.
        unpackings: All assignments to several targets, those of a call's result included.
        comprehensions: Comprehensions and generator expressions.
        asserts: Assert statements.
        raises: Raise statements.
    """

    file_lines: list[int] = field(default_factory=list)
    function_lines: list[int] = field(default_factory=list)
    code_lines: list[int] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    annotated: int = 0
    public: int = 0
    undocumented: list[str] = field(default_factory=list)
    wide: int = 0
    with_args: int = 0
    comments: int = 0
    long_lines: int = 0
    assignments: int = 0
    tuple_assignments: int = 0
    unpackings: int = 0
    comprehensions: int = 0
    asserts: int = 0
    raises: int = 0

    def add_file(self, path: Path) -> None:
        """Count one file; a file that is not Python is skipped."""
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            tree = ast.parse(text)
        except SyntaxError:
            return
        lines = text.splitlines()
        self.file_lines.append(len(lines))
        self.long_lines += sum(len(line) > COLUMNS for line in lines)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comments += sum(token.type == tokenize.COMMENT for token in tokens)
        for node in ast.walk(tree):
            self._add_statement(node)
            if isinstance(node, Function):
                self._add_function(node)
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                self._add_public(node, path)

    def _add_statement(self, node: ast.AST) -> None:
        self.comprehensions += isinstance(node, COMPREHENSIONS)
        self.asserts += isinstance(node, ast.Assert)
        self.raises += isinstance(node, ast.Raise)
        self.assignments += isinstance(node, ast.Assign)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            self.unpackings += 1
            self.tuple_assignments += isinstance(node.value, ast.Tuple)

    def _add_function(self, node: Function) -> None:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        self.function_lines.append(lines)
        self.code_lines.append(lines - _docstring_lines(node))
        self.parameters.append(len(_parameters(node)))
        self.annotated += node.returns is not None

    def _add_public(self, node: Function | ast.ClassDef, path: Path) -> None:
        text = ast.get_docstring(node)
        self.public += 1
        if text is None:
            self.undocumented.append(f"{path}:{node.lineno} {node.name}")
        if isinstance(node, Function) and len(_parameters(node)) >= WIDE_FUNCTION:
            self.wide += 1
            self.with_args += "Args:" in (text or "")

    def rows(self) -> dict[str, str]:
        """The measures by name, in the order in which they are printed."""
        lines = sum(self.file_lines)
        functions = len(self.function_lines)
        long_functions = sum(n > LONG_FUNCTION for n in self.function_lines)
        documented = self.public - len(self.undocumented)
        return {
            "files / lines": f"{len(self.file_lines)} / {lines:,}",
            "file lines: median / p90 / max": _spread(self.file_lines),
            "function lines: median / p90 / max": _spread(self.function_lines),
            "function lines without docstrings: median / p90 / max": _spread(self.code_lines),
            f"functions over {LONG_FUNCTION} lines, %": _share(long_functions, functions),
            "parameters: median / p90 / max": _spread(self.parameters),
            "public names with docstring, %": _share(documented, self.public),
            "functions with a return annotation, %": _share(self.annotated, functions),
            "Args: in public functions with 3 or more parameters": f"{self.with_args}/{self.wide}",
            "comments / 100 lines": _share(self.comments, lines),
            f"lines over {COLUMNS} columns, %": _share(self.long_lines, lines),
            "assignments to several targets / 100 lines": _share(self.unpackings, lines),
            "a, b = x, y / 100 lines": _share(self.tuple_assignments, lines),
            "a, b = x, y, % of assignments": _share(self.tuple_assignments, self.assignments),
            "comprehensions / 100 lines": _share(self.comprehensions, lines),
            "asserts / raises": f"{self.asserts} / {self.raises}",
        }


def measure(folder: Path) -> Counts:
    """Count all Python files below a folder.

    Raises:
        SystemExit: There are none.
    """
    counts = Counts()
    for path in python_files(folder):
        counts.add_file(path)
    if not counts.file_lines:
        raise SystemExit(f"{folder} holds no Python file; give NAME=FOLDER")
    return counts


def python_files(folder: Path) -> Iterator[Path]:
    """The Python files below a folder in order, without hidden and built ones."""
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part in SKIPPED for part in parts):
            yield path


def table(columns: dict[str, Counts]) -> str:
    """A Markdown table with one column per folder."""
    rows = {name: counts.rows() for name, counts in columns.items()}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for measure_name in next(iter(rows.values())):
        cells = [values[measure_name] for values in rows.values()]
        lines.append(f"| {measure_name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument(
        "--undocumented", action="store_true", help="list public names without a docstring"
    )
    options = parser.parse_args(arguments)
    columns = {}
    for word in options.folders:
        name, equals, folder = word.partition("=")
        if not equals:
            parser.error(f"got {word!r}, expected NAME=FOLDER")
        columns[name] = measure(Path(folder))
    sys.stdout.write(table(columns) + "\n")
    if options.undocumented:
        for counts in columns.values():
            sys.stdout.write("".join(f"{line}\n" for line in counts.undocumented))


def _docstring_lines(node: Function) -> int:
    """Lines of the docstring in the source, 0 without one."""
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is None:
        return 0
    return (first.end_lineno or first.lineno) - first.lineno + 1


def _parameters(node: Function) -> list[str]:
    """Names of the parameters without self and cls."""
    arguments = node.args
    every = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def _spread(values: list[int]) -> str:
    """Median, 90th percentile and maximum."""
    ordered = sorted(values) or [0]
    percentile = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    return f"{statistics.median(ordered):.0f} / {percentile} / {ordered[-1]}"


def _share(part: int, whole: int) -> str:
    """A part of a hundred."""
    return f"{100 * part / max(1, whole):.1f}"


if __name__ == "__main__":
    main()
