"""bench/measure_style.py: what it counts in a small tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.measure_style import main

SOURCE = '''"""A module."""

# A comment.
a, b = 1, 2
c, d = divmod(7, 2)
e = [x for x in range(3)]


class Plain:
    def method(self, x, y, z):
        """Return x.

        Args:
            x: A number.
        """
        assert y
        return x


def undocumented(x) -> int:
    raise ValueError
'''


def test_the_measures_of_a_small_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.py").write_text(SOURCE + "# " + "x" * 100 + "\n")
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "two.py").write_text(SOURCE)
    main([f"tree={tmp_path}", "--undocumented"])
    printed = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in printed[2:-2]]
    got = {row[0]: row[1] for row in cells}
    assert got["files / lines"] == "1 / 22"
    assert got["function lines: median / p90 / max"] == "5 / 8 / 8"
    assert got["function lines without docstrings: median / p90 / max"] == "2 / 3 / 3"
    assert got["parameters: median / p90 / max"] == "2 / 3 / 3"
    assert got["public names with docstring, %"] == "33.3"
    assert got["functions with a return annotation, %"] == "50.0"
    assert got["Args: in public functions with 3 or more parameters"] == "1/1"
    assert got["a, b = x, y, % of assignments"] == "33.3"
    assert got["asserts / raises"] == "1 / 1"
    assert [line.rsplit(" ", 1)[1] for line in printed[-2:]] == ["Plain", "undocumented"]


def test_a_folder_without_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no Python file"):
        main([f"tree={tmp_path}"])
