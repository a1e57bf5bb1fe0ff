"""The package as a user meets it: light to import, clear at the command line."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from fastreid_al.cli import parse_synthesis, parse_training
from fastreid_al.config import MSMT17_SIZE, RunConfig, recipe
from fastreid_al.data import load

PACKAGE = Path(__file__).parent.parent / "fastreid_al"


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_importing_is_light() -> None:
    heavy = ("torch", "numpy", "matplotlib", "argparse", "rich", "PIL", "yaml")
    code = f"import fastreid_al, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run(code=code).stdout.strip() == "[]"
    used = "import fastreid_al as f, sys; f.data.load; f.methods.UCAL; print([m for m in {} if m in sys.modules])"
    assert run(code=used.format(("matplotlib", "yaml"))).stdout.strip() == "[]"


#: The packages from the bottom up; each imports only from those before it, and from `EVERYWHERE`.
LAYERS = (
    ("distributed",),
    ("data", "models", "clustering", "memory", "synthetic"),
    ("metrics", "answers"),
    ("active", "engine"),
    ("annotators", "methods"),
    ("runs",),
)
EVERYWHERE = {"config", "errors", "files", "native", "plugins", "settings"}
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datset", "msmt17"], "unknown option --datset; did you mean --dataset?"),
        (["--cluster.epss", "0.5"], "unknown option --cluster.epss; did you mean --cluster.eps?"),
        (["--zzz"], "unknown option --zzz; see --help"),
        (["--model", "osnet_x0_2"], "--model: got 'osnet_x0_2', expected one of resnet18"),
        (["--dataset", "market"], "; did you mean market1501?"),
        (
            ["--cluster.dbscan", "gpu"],
            "--cluster.dbscan: got 'gpu', expected one of auto, graph, cuml",
        ),
        (
            ["--cluster.neighbours", "iv"],
            "--cluster.neighbours: got 'iv', expected one of exact, ivf; did you mean ivf?",
        ),
        (["--epochs", "many"], "--epochs: got 'many', expected a whole number, 1 or more"),
        (["--source", "foldr"], "--source: got 'foldr', expected one of synthetic, market1501"),
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
        (["--resume"], "--resume needs --run-dir"),
        (["--run-dir"], "expected one argument"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_training(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_recipes_are_defaults_of_their_image_set() -> None:
    assert parse_training([])[0] == recipe("synthetic")
    assert parse_training(["--dataset", "msmt17"])[0] == recipe("msmt17", "paper")
    assert parse_training(["--dataset", "msmt17"])[0].batch.iterations == 800
    assert parse_training(["--dataset", "market1501", "--recipe", "small"])[0] == recipe(
        "market1501", "small"
    )
    paper = RunConfig(dataset="market1501")
    assert (paper.epochs, paper.batch.size, paper.optimizer.lr, paper.optimizer.step) == (
        50,
        64,
        3.5e-4,
        20,
    )
    assert (
        paper.cluster.eps,
        paper.cluster.k1,
        paper.memory.temperature,
        paper.network.bn_group,
    ) == (
        0.6,
        30,
        0.05,
        16,
    )


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
    printed = run("fastreid_al.train", "--dataset", "market1501", "--epochs", "3", "--print_config")
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


def test_entry_points_say_what_is_missing_in_one_line(tmp_path: Path) -> None:
    trained = run("fastreid_al.train", "--dataset", "msmt17", "--data-root", str(tmp_path / "none"))
    assert trained.returncode == 2
    assert trained.stderr.startswith("error: folder ")
    assert len(trained.stderr.splitlines()) == 1
    scored = run("fastreid_al.evaluate", "--checkpoint", str(tmp_path / "none.pt"))
    assert scored.returncode == 2
    assert "does not exist; name a file" in scored.stderr
    assert len(scored.stderr.splitlines()) == 1


def test_the_drawn_set_is_written_where_asked(tmp_path: Path) -> None:
    assert parse_synthesis(["--out", "x", "--size", "msmt17", "--height", "64"])[1] == replace(
        MSMT17_SIZE, height=64
    )
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
