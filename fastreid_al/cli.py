"""From a command line to configuration objects: the only place that knows a parser."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args

from jsonargparse import ArgumentParser, Namespace

from .config import (
    MSMT17_SIZE,
    Dataset,
    EvaluationConfig,
    MethodName,
    Recipe,
    RunConfig,
    SimulationConfig,
    SyntheticConfig,
    recipe,
)
from .errors import UserError

_VALUE = re.compile(
    r'(?:Parser key|Option) "(?P<key>[\w.]+)".*?(?:Got|Given) value: (?P<value>[^\n]*)', re.DOTALL
)
_LEDGER_COMMANDS = {
    "show": "Count the answers, and say what follows from them.",
    "export": "Write the answers, or what follows from them, as CSV or JSON lines.",
    "undo": "Take an answer back; it stays in the ledger, and counts no more.",
    "check": "Look for damage; exits with status 1 when there is some.",
}
_CHOICES = re.compile(r"Literal\[(?P<choices>[^]]*)\]")


Settings = TypeVar("Settings", RunConfig, EvaluationConfig, SyntheticConfig, SimulationConfig)


class Parser(ArgumentParser):
    """A parser whose errors are one line, with the nearest thing that exists."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2 and one line."""
        if unknown := re.search(r"unrecognized arguments: (?P<arguments>.*)", message, re.DOTALL):
            text = self._unknown(unknown["arguments"].split())
        elif value := _VALUE.search(message):
            pair = "Expected a <class 'tuple'>" in message or "Expected a tuple with 2" in message
            text = _wrong_value(value["key"], value["value"], _CHOICES.search(message), pair)
        else:
            text = " ".join(message.split())
        print(f"{self.prog}: {text}", file=sys.stderr)
        raise SystemExit(2)

    def _unknown(self, arguments: list[str]) -> str:
        option = next((a for a in arguments if a.startswith("-")), arguments[0]).split("=")[0]
        known = [o for action in self._actions for o in action.option_strings]
        near = difflib.get_close_matches(
            option.replace("-", "_"), {o.replace("-", "_"): o for o in known}, 1, cutoff=0.5
        )
        name = "--" + near[0].lstrip("_").replace("_", "-") if near else ""
        return f"unknown option {option}; " + (f"did you mean {name}?" if near else "see --help")


def _wrong_value(key: str, value: str, choices: re.Match[str] | None, pair: bool) -> str:
    option = "--" + key.replace("_", "-")
    if pair:
        return f"{option}: '{value}' is not two numbers; write {option} '[0.3,0.9]'"
    if choices is None:
        return f"{option}: '{value}' is not a value that it takes; see --help"
    names = re.findall(r"'([^']*)'", choices["choices"])
    near = difflib.get_close_matches(value, names, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{option}: there is no '{value}'; {meant}known: {', '.join(names)}"


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Accept --data-root for --data_root: dashes in an option's name become underscores, its value stays."""
    return [_name_with_underscores(a) if a.startswith("--") else a for a in arguments]


def _name_with_underscores(argument: str) -> str:
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def parse_training(arguments: Sequence[str] | None = None) -> tuple[RunConfig, Namespace]:
    """Parse `python -m fastreid_al.train`.

    The defaults are the recipe of the image set or, with --resume, the configuration of the run; over them go the
    configuration file and then the options.

    Returns:
        The configuration, and the options that are not part of it (resume, dry_run).
    """
    words = _words(arguments)
    parser = Parser(
        prog="python -m fastreid_al.train",
        description="Train a re-identification model on unlabelled images.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML or JSON file of settings, such as a run's config.json.",
    )
    parser.add_argument(
        "--recipe",
        type=Recipe,
        default="auto",
        help="Defaults: paper, small (minutes on a laptop), auto by image set.",
    )
    parser.add_argument(
        "--resume", action="store_true", help="Continue the run in --run-dir, or begin it."
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="Say what a run would do, without one."
    )
    parser.add_class_arguments(RunConfig, None)
    try:
        parser.set_defaults(dataclasses.asdict(_defaults(words)))
        found = parser.parse_args(words)
    except UserError as error:
        parser.error(str(error))
    if found.resume and not found.run_dir:
        parser.error("--resume needs --run-dir, the folder of the run to continue")
    return _from_dict(RunConfig(), found.as_dict()), found


def parse_evaluation(arguments: Sequence[str] | None = None) -> EvaluationConfig:
    """Parse `python -m fastreid_al.evaluate`."""
    about = "Score a checkpoint or a bare weights file on an image set."
    found = _parse_class("evaluate", about, EvaluationConfig, arguments)
    return _from_dict(EvaluationConfig(found["checkpoint"]), found)


def parse_simulation(arguments: Sequence[str] | None = None) -> SimulationConfig:
    """Parse `python -m fastreid_al.simulate`."""
    about = "Ask an oracle with each strategy, on fixed features, and draw cluster quality over questions."
    found = _parse_class("simulate", about, SimulationConfig, arguments)
    return _from_dict(SimulationConfig(found["features"]), found)


def _parse_class(
    name: str, about: str, settings: type, arguments: Sequence[str] | None
) -> dict[str, Any]:
    """The options of an entry point whose settings are one dataclass."""
    parser = Parser(prog=f"python -m fastreid_al.{name}", description=about, allow_abbrev=False)
    parser.add_class_arguments(settings, None)
    values: dict[str, Any] = parser.parse_args(_words(arguments)).as_dict()
    return values


def parse_diagnosis(arguments: Sequence[str] | None = None) -> None:
    """Parse `python -m fastreid_al.doctor`, which takes no option but --help."""
    parser = Parser(
        prog="python -m fastreid_al.doctor",
        description="Say what is installed, what runs, and what to do about the rest; status 1 when something must be mended.",
        allow_abbrev=False,
    )
    parser.parse_args(_words(arguments))


def parse_synthesis(arguments: Sequence[str] | None = None) -> tuple[Path, SyntheticConfig]:
    """Parse `python -m fastreid_al.synthesize`."""
    parser = Parser(
        prog="python -m fastreid_al.synthesize",
        description="Write the synthetic set into a folder, in MSMT17's layout.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=str, required=True, help="Folder to write MSMT17_V1 into.")
    parser.add_argument(
        "--size",
        type=Literal["default", "msmt17"],
        default="default",
        help="Counts to start from; options go over them.",
    )
    parser.add_class_arguments(SyntheticConfig, None)
    words = _words(arguments)
    size = MSMT17_SIZE if _ahead(words, "--size").size == "msmt17" else SyntheticConfig()
    parser.set_defaults(dataclasses.asdict(size))
    found = parser.parse_args(words)
    return Path(found.out), _from_dict(SyntheticConfig(), found.as_dict())


def parse_ledger(arguments: Sequence[str] | None = None) -> Namespace:
    """Parse `python -m fastreid_al.ledger`.

    Returns:
        `command` (show, export, undo or check), `file`, and the options of the command.
    """
    parser = Parser(
        prog="python -m fastreid_al.ledger",
        description="Look into a ledger of answers, write it out, take an answer back, or check it.",
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command")
    for name, describe in _LEDGER_COMMANDS.items():
        command = Parser(description=describe, allow_abbrev=False)
        command.add_argument("file", type=str, help="SQLite file or PostgreSQL URL.")
        if name == "export":
            _add_export_options(command)
        if name == "undo":
            command.add_argument("--event", type=int, required=True, help="Event of the answer.")
            command.add_argument(
                "--annotator", type=str, default="command line", help="Who takes it back."
            )
        commands.add_subcommand(name, command, help=describe)
        command.prog = f"{parser.prog} {name}"
    found = parser.parse_args(_words(arguments))
    return Namespace(command=found.command, **found[found.command].as_dict())


def _add_export_options(parser: Parser) -> None:
    parser.add_argument(
        "--what",
        type=Literal["answers", "closure"],
        default="answers",
        help="Every event as it was written, or every pair of images that the answers decide.",
    )
    parser.add_argument(
        "--format",
        type=Literal["csv", "jsonl"],
        default="csv",
        help="Comma-separated, or JSON by line.",
    )
    parser.add_argument(
        "--out", type=str, default="-", help="File to write; standard output when not given."
    )
    parser.add_argument("--as_of", type=int, help="Last event that counts.")
    parser.add_argument(
        "--pair", type=str, nargs=2, help="Paths of two images: the closure of these alone."
    )


def _words(arguments: Sequence[str] | None) -> list[str]:
    return with_underscores(sys.argv[1:] if arguments is None else arguments)


def _defaults(words: list[str]) -> RunConfig:
    """The defaults hang on a few options, which are read ahead of the others."""
    found = _ahead(words, "--config", "--dataset", "--recipe", "--method", "--run_dir")
    file = _read_settings(Path(found.config)) if found.config else {}
    run_dir = found.run_dir or file.get("run_dir")
    if found.resume and run_dir and (saved := Path(run_dir) / "config.json").is_file():
        return _from_dict(RunConfig(), {**_read_settings(saved), "run_dir": run_dir})
    dataset: Any = found.dataset or file.get("dataset") or "synthetic"
    chosen: Any = found.recipe or file.get("recipe") or "auto"
    method: Any = found.method or file.get("method") or "ucal"
    # Wrong names are left to the parser, which says what exists.
    known = (
        dataset in get_args(Dataset)
        and chosen in get_args(Recipe)
        and method in get_args(MethodName)
    )
    return recipe(dataset, chosen, method) if known else RunConfig()


def _ahead(words: list[str], *options: str) -> argparse.Namespace:
    """Read a few options, and --resume, ahead of the others."""
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in options:
        ahead.add_argument(option)
    ahead.add_argument("--resume", action="store_true")
    try:
        return ahead.parse_known_args(words)[0]
    except argparse.ArgumentError:  # left to the parser proper, which says what is wrong
        return ahead.parse_known_args([])[0]


def _read_settings(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read as settings ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; write one with --print_config > {path}")
    return content


def _from_dict(defaults: Settings, values: dict[str, Any]) -> Settings:
    """The defaults with other values: the inverse of `dataclasses.asdict`, also after a trip through JSON."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(defaults):
        default = getattr(defaults, field.name)
        if field.name not in values:  # as where an older version wrote them
            continue
        value = values[field.name]
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise UserError(
                    f"the settings hold {value!r} for {field.name}, which is a group of settings"
                )
            value = _from_dict(cast(Any, default), value)
        changes[field.name] = tuple(value) if isinstance(default, tuple) else value
    return dataclasses.replace(defaults, **changes)


def run_main(main: Callable[[], None]) -> None:
    """Run an entry point: what the user can mend is one line and status 2, Ctrl-C is status 130."""
    try:
        main()
    except UserError as error:
        if not error.said:
            # One write, so that the lines of several ranks stay apart.
            sys.stderr.write(f"error: {error}\n")
        _tell_torchrun(f"error: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _tell_torchrun(text: str) -> None:
    """Have torchrun, which prints a summary when a rank fails, say why."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        said = {
            "message": text,
            "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))},
        }
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": said}))
