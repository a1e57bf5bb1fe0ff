"""The command line: options to configuration objects, keys to options, help, errors of one line."""

from __future__ import annotations

import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastreid_al import cli
from fastreid_al.cli import (
    as_options,
    as_options_of_run,
    parse_evaluation,
    parse_report,
    parse_simulation,
    parse_synthesis,
    parse_training,
)
from fastreid_al.config import MSMT17_SIZE, RunConfig, recipe
from fastreid_al.data import load
from fastreid_al.errors import SettingError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["one", "--out", "x.html", "two"], ("one", "two")),
        (["--out", "x.html", "one", "two"], ("one", "two")),
        (["one", "--out", "x.html"], ("one", None)),
        (["--out", "x.html", "--", "-one", "--my_run"], ("-one", "--my_run")),
    ],
)
def test_runs_are_words_on_both_sides_of_options(
    arguments: list[str], runs: tuple[str, str | None]
) -> None:
    options = parse_report(arguments)
    assert (options.run, options.other, options.out) == (*runs, "x.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datset", "msmt17"], "unknown option --datset; did you mean --dataset?"),
        (["--cluster.epss", "0.5"], "unknown option --cluster.epss; did you mean --cluster.eps?"),
        (["--zzz"], "unknown option --zzz; see --help"),
        (
            ["--model", "osnet_x0_2"],
            "--model: got 'osnet_x0_2', expected one of resnet18, resnet34, resnet50, resnet101, "
            "osnet_x1_0, osnet_x0_75, osnet_x0_5, osnet_x0_25; did you mean osnet_x0_25?",
        ),
        (
            ["--dataset", "market"],
            "manifest, folder; did you mean market1501?",
        ),
        (
            ["--cluster.dbscan", "gpu"],
            "--cluster.dbscan: got 'gpu', expected one of auto, graph, cuml",
        ),
        (
            ["--cluster.neighbours", "iv"],
            "--cluster.neighbours: got 'iv', expected one of exact, ivf; did you mean ivf?",
        ),
        (["--epochs", "many"], "--epochs: got 'many', expected a whole number, 1 or more"),
        (
            ["--source", "foldr"],
            "expected one or more, with commas between, of synthetic, market1501, dukemtmcreid, ",
        ),
        (
            ["--style.probability", "abc"],
            "--style.probability: got 'abc', expected a number, 0 to 1",
        ),
        (
            ["--image.crop-area", "0.5"],
            "--image.crop-area: got '0.5', expected [low,high], two numbers, above 0, up to 1",
        ),
        (
            ["--image.crop-area", "[0.5]"],
            "--image.crop-area: got '[0.5]', expected [low,high], two numbers",
        ),
        (
            ["--nnct.threshold", "abc"],
            "--nnct.threshold: got 'abc', expected a number, above -1 and below 1",
        ),
        (["--optimizer.lr", "inf"], "--optimizer.lr: got 'inf', expected a number, above 0"),
        (
            ["--tensorboard", "perhaps"],
            "--tensorboard: got 'perhaps', expected true or false",
        ),
        (
            ["--recipe", "papr"],
            "--recipe: got 'papr', expected one of auto, paper, small, reid; did",
        ),
        (["--method", "ucl"], "--method: got 'ucl', expected one of ucal, nnct, supervised; did"),
        (["--ask", "gian"], "--ask: got 'gian', expected one of none, ucal, gain, spal, random"),
        (
            ["--annotator", "me"],
            "--annotator: got 'me', expected one of oracle, terminal, web, replay",
        ),
        (["--resume"], "--resume needs --run-dir"),
        (["--run-dir"], "expected one argument"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
    ],
)
@pytest.mark.usefixtures("released_models")
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_training(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_options_are_read_with_dashes_and_with_underscores() -> None:
    words = ["--neighbours_k", "3", "--nnct.at-least=4", "--method=nnct", "--run_dir", "a_b"]
    config, _ = parse_training(words)
    assert (config.neighbours_k, config.nnct.at_least, config.run_dir) == (3, 4, "a_b")


def test_values_are_read_by_the_type_of_their_setting() -> None:
    words = ["--tensorboard", "--network.osnet-fc", "false", "--source", "null"]
    words += ["--image.crop-area", "[0.5,1]", "--image.rotate", "10", "--questions.budget", "7"]
    config, _ = parse_training(words)
    assert config.tensorboard is True
    assert config.network.osnet_fc is False
    assert config.source is None
    assert config.image.crop_area == (0.5, 1.0)
    assert isinstance(config.image.rotate, float)
    assert config.questions.budget == 7


def test_values_are_read_as_yaml_writes_them(tmp_path: Path) -> None:
    words = ["--tensorboard", "yes", "--profile", "off", "--image.erase-area", "[.02, 4e-1]"]
    config, _ = parse_training(words)
    assert (config.tensorboard, config.profile) == (True, False)
    assert config.image.erase_area == (0.02, 0.4)
    file = tmp_path / "settings.json"
    # As JSON writes 0.00001: YAML takes it for text.
    file.write_text('{"optimizer": {"lr": 1e-05}, "image": {"erase_area": [1e-05, 0.4]}}')
    config, _ = parse_training(["--config", str(file)])
    assert (config.optimizer.lr, config.image.erase_area) == (1e-5, (1e-5, 0.4))


def test_configuration_file_is_read_and_options_go_over_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        yaml.safe_dump({"dataset": "msmt17", "epochs": 7, "cluster": {"eps": 0.5, "k1": 20}})
    )
    config, _ = parse_training(["--config", str(file), "--cluster.k1", "25", "--data-root=/x-y"])
    assert (config.dataset, config.epochs, config.cluster.eps, config.cluster.k1) == (
        "msmt17",
        7,
        0.5,
        25,
    )
    assert config.batch.iterations == 800
    assert config.data_root == "/x-y"


def test_print_config_is_a_configuration_file(tmp_path: Path) -> None:
    printed = run("fastreid_al.train", "--dataset", "market1501", "--epochs", "3", "--print-config")
    assert printed.returncode == 0, printed.stderr
    file = tmp_path / "printed.yaml"
    file.write_text(printed.stdout)
    assert (
        parse_training(["--config", str(file)])[0]
        == parse_training(["--dataset", "market1501", "--epochs", "3"])[0]
    )


def test_a_run_of_an_older_version_without_some_settings_is_resumed(tmp_path: Path) -> None:
    saved = asdict(RunConfig(seed=7))
    del saved["engine"], saved["profile"], saved["image"]["cache"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config, _ = parse_training(["--run-dir", str(tmp_path), "--resume"])
    assert config == RunConfig(seed=7, run_dir=str(tmp_path))


def test_resume_takes_the_configuration_of_the_run(tmp_path: Path) -> None:
    saved = {
        **json.loads(json.dumps(vars(recipe()), default=vars)),
        "epochs": 99,
        "dataset": "folder",
    }
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config, options = parse_training(["--run-dir", str(tmp_path), "--resume", "--seed", "5"])
    assert options.resume
    assert (config.epochs, config.dataset, config.seed, config.run_dir) == (
        99,
        "folder",
        5,
        str(tmp_path),
    )
    assert config.image.erase_area == recipe().image.erase_area


def test_an_unknown_key_of_a_file_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    for content, message in (
        ("cluster: {epss: 0.5}", "unknown setting cluster.epss; did you mean cluster.eps?"),
        ("cluster: 5", "got 5 for cluster, expected a group of settings"),
        ("- 1", "holds no settings; write some with --print-config"),
        ("epochs: many", "--epochs: got 'many', expected a whole number, 1 or more"),
    ):
        file.write_text(content)
        with pytest.raises(SystemExit):
            parse_training(["--config", str(file)])
        assert message in capsys.readouterr().err


REMOVED = {
    "image": {"store_dir": "/tmp", "crop_aspect": [2, 3], "erase_aspect": [0.3, 3.33]},
    "style": {"space": "rgb"},
    "nnct": {"layout": "sparse", "capacity": 5},
    "evaluate_untrained": False,
}
KEYS = [
    *("image.store_dir", "image.crop_aspect", "image.erase_aspect", "style.space"),
    *("nnct.layout", "nnct.capacity", "evaluate_untrained"),
]


def test_settings_that_were_removed_are_accepted_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [part for key in KEYS for part in (cli.option(key), "x")]
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump(REMOVED))
    saved = asdict(recipe())
    for name, values in REMOVED.items():
        saved[name] = {**saved[name], **values} if isinstance(values, dict) else values
    (tmp_path / "config.json").write_text(json.dumps(saved))
    resumed = ["--run-dir", str(tmp_path), "--resume"]
    for arguments in (words, ["--config", str(file)], resumed):
        config, _ = parse_training(arguments)
        assert replace(config, run_dir=None) == recipe()
        warnings = capsys.readouterr().err.splitlines()
        expected = [f"warning: {cli.option(key)} is no longer a setting: " for key in KEYS]
        assert len(warnings) == len(expected)
        for start in expected:
            assert sum(line.startswith(start) for line in warnings) == 1
    parse_evaluation(["--checkpoint", "x.pt", "--store-dir", "/tmp"])
    assert "--store-dir is no longer a setting: " in capsys.readouterr().err


def test_scikit_learns_dbscan_becomes_auto_with_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert parse_training(["--cluster.dbscan", "sklearn"])[0].cluster.dbscan == "auto"
    assert capsys.readouterr().err == (
        "warning: --cluster.dbscan no longer takes sklearn: auto is used instead\n"
    )


def test_keys_in_backquotes_become_options() -> None:
    text = "`batch.size`: got 1; see `run_dir`, `nnct.*`, `dry_run`, `save_features` and `nothing`"
    assert as_options(text) == (
        "--batch.size: got 1; see --run-dir, --nnct.*, --dry-run, --save-features and `nothing`"
    )
    assert as_options("`adaptation.synthetic.seed`") == "--adaptation.synthetic.seed"


def test_a_page_that_a_run_opened_names_the_options_of_the_run() -> None:
    text = "see `people`; `port`: got 1; `renew_links`; `nothing`"
    assert (
        as_options_of_run(text) == "see --web.people; --web.port: got 1; --renew-links; `nothing`"
    )


def test_errors_of_a_run_name_options_and_python_sees_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = SettingError("batch.per_identity", 9, "1 to `batch.size`")
    assert str(error) == "`batch.per_identity`: got 9, expected 1 to `batch.size`"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

    def failing() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run_main(failing)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed == "error: --batch.per-identity: got 9, expected 1 to --batch.size\n"


@pytest.mark.parametrize("parse", [parse_evaluation, parse_simulation, parse_synthesis])
def test_an_option_that_is_required_is_named(
    parse: Callable[[list[str]], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse([])
    assert stopped.value.code == 2
    assert " is required: " in capsys.readouterr().err


def help_of(capsys: pytest.CaptureFixture[str], parse: Callable[..., Any], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(list(words))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_options_that_matter_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, parse_training, "--help")
    shown = [word for word in text.split() if word.startswith("--") and word[2].isalpha()]
    first = {
        *("--dataset", "--data-root", "--method", "--ask", "--annotator", "--model", "--epochs"),
        *("--run-dir", "--resume", "--recipe", "--help-all"),
    }
    assert first <= set(shown)
    assert "--cluster.eps" not in text
    assert len(text.splitlines()) < 60


def test_help_all_shows_every_option_with_the_defaults_of_the_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_of(capsys, parse_training, "--help-all", "--method", "nnct")
    for key in cli.settings_of(RunConfig):
        assert cli.option(key) in text
    assert "store-dir" not in text
    assert "default sgd" not in text
    assert "default 0.7" in " ".join(text.split())
    assert "_" not in "".join(w for w in text.split() if w.startswith("--"))


def test_one_command_runs_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert "simulate" in help_of(capsys, cli.main, "--help")
    for command in cli.COMMANDS:
        assert f"usage: fastreid-al {command}" in help_of(capsys, cli.main, command, "--help")
    for words, message in (
        ([], "name a command: train, evaluate"),
        (["tran"], "unknown command tran; did you mean train?"),
        (["xyz"], "unknown command xyz; expected one of train, evaluate"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    code = "import sys; from fastreid_al.cli import main\ntry: main(['train', '--help'])\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False False", done.stderr


def test_entry_points_name_what_is_missing_in_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    trained = run("fastreid_al", "train", "--dataset", "msmt17", "--data-root", missing)
    assert trained.returncode == 2
    assert trained.stderr.startswith("error: folder ")
    assert len(trained.stderr.splitlines()) == 1
    scored = run("fastreid_al.evaluate", "--checkpoint", str(tmp_path / "none.pt"))
    assert scored.returncode == 2
    assert "does not exist; name a file" in scored.stderr
    assert len(scored.stderr.splitlines()) == 1


def test_the_synthetic_set_is_written_where_asked(tmp_path: Path) -> None:
    large = parse_synthesis(["--out", "x", "--size", "msmt17", "--height", "64"])[1]
    assert large == replace(MSMT17_SIZE, height=64)
    small = [
        "--train-identities",
        "3",
        "--train-images",
        "9",
        "--test-identities",
        "2",
        "--query-images",
        "4",
    ]
    small += ["--gallery-images", "8", "--cameras", "2", "--height", "32"]
    made = run("fastreid_al.synthesize", "--out", str(tmp_path), *small)
    assert made.returncode == 0, made.stderr
    assert [len(s) for s in load("msmt17", tmp_path, verbose=False).splits.values()] == [9, 4, 8]
    again = run("fastreid_al.synthesize", "--out", str(tmp_path), *small)
    assert again.returncode == 2
    assert "is not empty" in again.stderr


def test_a_tilde_is_the_home_folder_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("data_root: ~/set\nimage: {cache: ~/cache}\n")
    config, _ = parse_training(["--config=~/run.yaml", "--run-dir=~/run", "--weights=~/w.pt"])
    assert config.data_root == str(tmp_path / "set")
    assert config.image.cache == str(tmp_path / "cache")
    assert config.run_dir == str(tmp_path / "run")
    assert config.weights == str(tmp_path / "w.pt")
    assert parse_evaluation(["--checkpoint=~/last.pt"]).checkpoint == str(tmp_path / "last.pt")


def test_a_closed_pipe_of_any_command_is_no_traceback() -> None:
    command = f"{sys.executable} -m fastreid_al.train --help-all | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""


def test_a_full_disk_below_the_output_is_one_line() -> None:
    code = (
        "from fastreid_al.cli import run_main\n"
        "from fastreid_al.engine.console import Reporter\n"
        "run_main(lambda: Reporter().line('x' * 100_000))"
    )
    command = f"{sys.executable} -c {shlex.quote(code)} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stderr == "error: could not write the output (No space left on device)\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("raised", "status", "printed"),
    [
        ("UserError('no such set')", 2, "error: no such set\n"),
        ("BrokenPipeError('a worker ended')", 1, "BrokenPipeError: a worker ended\n"),
    ],
)
@pytest.mark.parametrize("where", [">&-", "| true", "> /dev/null"])
def test_an_error_is_printed_whatever_became_of_the_output(
    raised: str, status: int, printed: str, where: str
) -> None:
    code = (
        "import time\nfrom fastreid_al.cli import run_main\n"
        "from fastreid_al.errors import UserError\n"
        f"def main():\n    time.sleep(0.2)\n    raise {raised}\n"
        "run_main(main)"
    )
    command = f"set -o pipefail; {sys.executable} -c {shlex.quote(code)} {where}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    if "UserError" in raised or where != "| true":
        assert done.stderr.endswith(printed)
        assert done.returncode == status
