"""Files of settings: what no settings are is refused in one line, within bounds."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fastreid_al.cli import parse_training
from fastreid_al.errors import SettingError, UserError
from fastreid_al.settings_file import read_settings

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
REFUSED = {
    "aliases": BOMB,
    "merge keys": MERGES,
    "an alias of itself": "a: &a [*a]",
    "a number of 10,000 digits": f"seed: {'9' * 10_000}",
    "hexadecimal digits": f"seed: 0x{'f' * 10_000}",
    "lists in lists": "[" * 3000,
    "groups in groups": "{a: " * 3000,
    "blocks in blocks": "".join(f"{' ' * i}a:\n" for i in range(400)),
    "sequences": "- " * 3000,
    "JSON lists": '{"seed": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "many values": "x: [" + "1, " * 100_000 + "]",
    "a large file": "seed: 1\n" + "#" * 2**21,
    "a number as a key": "1: 2",
    "nothing as a key": "batch: {null: 2}",
    "a list as a key": "? [a, b]\n: 3",
    "a day that does not exist": "seed: 2024-13-45",
    "no number": "seed: !!int x",
    "no time": "seed: !!timestamp x",
    "no bytes": "seed: !!binary ü",
    "a Python object": "seed: !!python/object/apply:os.system ['touch executed']",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "a tab": "seed:\n\t1",
    "a list": "- 1",
    "a text": "just text",
    "nothing": "",
    "control characters": "seed: \x00\x01",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_settings_are_is_refused_in_one_line(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "settings.yaml"
    file.write_text(REFUSED[what])
    with pytest.raises(UserError) as refused:
        read_settings(file)
    said = str(refused.value)
    assert str(file) in said and "\n" not in said and len(said) < 400
    assert not (tmp_path / "executed").exists()


def test_a_value_that_is_no_setting_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    values = (
        "2024-01-01",
        "[1, 2]",
        "{a: 1}",
        ".nan",
        "9" * 4000,
        "!!set {a}",
        "'" + "x" * 4000 + "'",
    )
    for value in values:
        file.write_text(f"batch: {{size: {value}}}")
        with pytest.raises(SystemExit):
            parse_training(["--config", str(file)])
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "batch.size" in said and len(said) < 400


def test_a_long_value_is_cut_in_a_message() -> None:
    assert len(str(SettingError("seed", "9" * 10**5, "a number"))) < 400
    assert "very many digits" in str(SettingError("seed", 10**5000, "a number"))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"seed: \xd5"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as settings"):
        read_settings(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="No such file"):
        read_settings(Path(os.fsdecode(b"/\xd5.yaml")))
    with pytest.raises(UserError, match="Is a directory"):
        read_settings(tmp_path)


def test_aliases_take_neither_time_nor_memory(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(BOMB + MERGES.replace("a", "b"))
    done = subprocess.run(
        [sys.executable, "-m", "fastreid_al.train", "--config", str(tmp_path / "x.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31)),
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "alias" in done.stderr


def test_the_settings_that_a_run_writes_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "batch:\n  size: 32\nimage: {crop_area: [0.5, 1]}\nsource: null\n"
    )
    assert read_settings(tmp_path / "x.yaml") == {
        "batch.size": 32,
        "image.crop_area": [0.5, 1],
        "source": None,
    }
