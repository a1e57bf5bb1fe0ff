"""From a command line to configuration objects: the only module that knows a parser or an option.

Below this module settings are named by key in backquotes, such as `batch.size`. Here a key
becomes an option, with dashes for underscores, as in `--questions.per-epoch`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, Literal, NoReturn, TextIO, TypeVar, cast

from . import __version__
from .config import (
    MSMT17_SIZE,
    AnnotationConfig,
    EvaluationConfig,
    ExportConfig,
    ExtractionConfig,
    ReportConfig,
    RunConfig,
    SearchConfig,
    SimulationConfig,
    SyntheticConfig,
    recipe,
)
from .errors import UserError, one_line, printable
from .files import replacing
from .settings import (
    Setting,
    did_you_mean,
    flatten,
    groups_of,
    removed_settings,
    settings_of,
    with_values,
)
from .settings_file import read_settings

Config = TypeVar(
    "Config",
    RunConfig,
    EvaluationConfig,
    SimulationConfig,
    SyntheticConfig,
    ExportConfig,
    ExtractionConfig,
    SearchConfig,
    ReportConfig,
    AnnotationConfig,
)

#: The subcommands, each a module of this package, in the order of a first visit.
COMMANDS = {
    "train": "Train a re-identification model on unlabelled images.",
    "evaluate": "Score a checkpoint or a bare weights file on an image set.",
    "annotate": "Serve the page on which people answer the questions of a run in a browser.",
    "export": "Write the identities that a run found, or its network, for other programs.",
    "extract": "Write the features of images into a file.",
    "search": "Find the gallery images that are most similar to a query.",
    "report": "Write a page that shows a run, or compares two: curves, clusters, questions.",
    "simulate": "Ask an oracle with each strategy, on fixed features, and plot cluster quality.",
    "data": "Report what would be read of a folder of images, or of a manifest.",
    "ledger": "Read a ledger of answers, export, import or check it, or take an answer back.",
    "synthesize": "Write the synthetic set into a folder, in MSMT17's layout.",
    "doctor": "Report what is installed, what runs, and what to do about the rest.",
}
#: Modules of commands that have another name.
_MODULES = {"data": "data_check"}
#: What a write onto a full disk raises.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DATA_COMMANDS = {
    "check": "Count images, identities, cameras, formats, sizes and copies, and what is left out.",
}
_LEDGER_COMMANDS = {
    "show": "Count the answers, and what follows from them.",
    "export": "Write the answers, or what follows from them, as CSV or JSON lines.",
    "import": "Add answers of a CSV file or of Label Studio, all of them or none.",
    "conflicts": "Print each contradiction, and which answers of it are likely wrong.",
    "undo": "Take an answer back; it stays in the ledger and counts no more.",
    "check": "Look for damage; exits with status 1 when there is some.",
    "digest": "Print the SHA-256 of all events, by which a later change of them is found.",
}

#: Options of commands that are not fields of a configuration class.
_RECIPE = Setting(
    "Defaults: paper, small (minutes on a laptop), reid (for weights of a re-identification "
    "network), or auto, by the image set.",
    "auto",
    key="recipe",
    type=Literal["auto", "paper", "small", "reid"],
)
_RESUME = Setting(
    "Continue the run in `run_dir`, or start it when it has no checkpoint.",
    False,
    key="resume",
    type=bool,
)
_DRY_RUN = Setting(
    "Report what a run would do, without starting it.", False, key="dry_run", type=bool
)
_CONFIG = Setting(
    "YAML or JSON file of settings, such as config.json of a run; options override it.",
    None,
    key="config",
    type=str,
    path=True,
)
_PRINT_CONFIG = Setting(
    "Print all settings as YAML, for `config`, and exit.", False, key="print_config", type=bool
)
_MANIFEST = Setting(
    "CSV file that lists the images; the same as `dataset` manifest and its path as `data_root`.",
    None,
    key="manifest",
    type=str,
    path=True,
)
_JSON = Setting("Print the report as JSON.", False, key="json", type=bool)
_HELP = Setting("Show this help.", False, key="help", type=bool)
_HELP_ALL = Setting("Show every option.", False, key="help_all", type=bool)
_OUT = Setting("Folder to write MSMT17_V1 into.", key="out", type=str, path=True)
_SIZE = Setting(
    "Counts to start from, which other options override.",
    "default",
    key="size",
    type=Literal["default", "msmt17"],
)
_EVENT = Setting("Event of the answer.", key="event", type=int)
_ANNOTATOR = Setting("Who takes it back.", "command line", key="annotator", type=str)
_AS_OF = Setting("Last event that counts.", None, key="as_of", type=int | None, at_least=0)
_EXPORT = (
    Setting(
        "Every event as it was written, every pair of images that the answers decide, or the "
        "labels of an epoch: these of the folder of a run in place of FILE.",
        "answers",
        key="what",
        type=Literal["answers", "closure", "labels"],
    ),
    Setting(
        "Comma-separated, or one JSON object a line.",
        "csv",
        key="format",
        type=Literal["csv", "jsonl"],
    ),
    Setting("File to write; - is standard output.", "-", key="out", type=str, path=True),
    _AS_OF,
    Setting(
        "Epoch of the labels, from 1; the last one with questions when not given.",
        None,
        key="epoch",
        type=int | None,
    ),
)
_IMPORT = (
    Setting("File of the answers.", key="from", type=str, path=True),
    Setting(
        "A table with the columns left, right, verdict, or a JSON export of Label Studio.",
        "csv",
        key="form",
        type=Literal["csv", "label-studio"],
    ),
    Setting(
        "Folder of the image set, to find images by content and to add new ones.",
        None,
        key="data_root",
        type=str,
        path=True,
    ),
    Setting(
        "Who gave the answers of which the file does not say it.",
        "import",
        key="annotator",
        type=str,
    ),
)
TRAINING_OPTIONS = (_RECIPE, _RESUME, _DRY_RUN, _CONFIG, _PRINT_CONFIG, _MANIFEST)
_FLAGS = (_RESUME, _DRY_RUN, _PRINT_CONFIG, _JSON, _HELP, _HELP_ALL)

#: The settings of a run that are in no group, as the help shows them.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Images": (
        *("dataset", "data_root", "manifest", "camera_pattern", "identity_pattern"),
        *("tracklet_frames", "source", "source_root", "camstyle"),
    ),
    "Method": ("method", "model", "epochs", "neighbours_k", "weights", "seed"),
    "Questions": ("ask", "annotator"),
    "Run": (
        *("run_dir", "resume", "recipe", "config", "print_config", "dry_run", "device"),
        *("evaluate_every", "tensorboard", "profile", "help", "help_all"),
    ),
}
#: What `--help` of a training shows.
_FIRST = (
    *("dataset", "data_root", "method", "model", "epochs", "ask", "annotator"),
    *("run_dir", "resume", "recipe", "config", "help", "help_all"),
)


def option(key: str) -> str:
    """The option of a key: `questions.per_epoch` is --questions.per-epoch."""
    return "--" + key.replace("_", "-")


def as_options(text: str) -> str:
    """Replace every key in backquotes by its option; other words in backquotes stay."""
    return re.sub(r"`([a-z0-9_.]+)(\.\*)?`", _as_option, text)


def as_options_of_run(text: str) -> str:
    """Replace the keys of a page's settings by the options of the run that opened the page.

    `people` is --web.people there. Settings that a run does not pass on keep their own option.
    """

    def of_run(found: re.Match[str]) -> str:
        key = f"web.{found[1]}"
        return option(key) if key in _known_keys() else found[0]

    return as_options(re.sub(r"`([a-z0-9_]+)`", of_run, text))


def _as_option(found: re.Match[str]) -> str:
    key, star = found.groups(default="")
    return option(key) + star if key in _known_keys() else found[0]


@cache
def _known_keys() -> frozenset[str]:
    classes = (
        *(RunConfig, EvaluationConfig, SimulationConfig, SyntheticConfig),
        *(ExportConfig, ExtractionConfig, SearchConfig, ReportConfig, AnnotationConfig),
    )
    keys = {s.key for s in (*TRAINING_OPTIONS, *_EXPORT, *_IMPORT, _OUT, _SIZE, _EVENT)} | {"pair"}
    for cls in classes:
        keys |= {*settings_of(cls), *groups_of(cls), *removed_settings(cls)}
    return frozenset(keys)


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """Accept --data_root for --data-root: underscores of an option's name become dashes.

    What follows the word -- are names, which stay.
    """
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words = []
    for argument in arguments[:end]:
        name, equals, value = argument.partition("=")
        words.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return words + arguments[end:]


class _Formatter(argparse.HelpFormatter):
    """Options in a column of 30, and lines of up to 100 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(100, get_terminal_size().columns))


class Parser(argparse.ArgumentParser):
    """Options of a command whose errors are one line and name what is nearest.

    Args:
        command: Name of the command.
        description: What it does, in one line.
        sections: Titles of the first sections of the help.
    """

    def __init__(self, command: str, description: str, sections: Iterable[str] = ()) -> None:
        super().__init__(
            prog=f"fastreid-al {command}",
            usage=f"fastreid-al {command} [--OPTION VALUE]...",
            description=description,
            add_help=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=_Formatter,
        )
        self.settings: dict[str, Setting] = {}
        self._sections = {title: self.add_argument_group(title) for title in sections}

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line."""
        line = one_line(" ".join(as_options(message).split()))
        print(f"{self.prog}: {line}", file=sys.stderr)
        raise SystemExit(2)

    def section(self, title: str) -> Any:
        """The section of the help with a title, made at its first use."""
        if title not in self._sections:
            self._sections[title] = self.add_argument_group(title)
        return self._sections[title]

    def add_setting(self, setting: Setting, section: str = "Options") -> None:
        """Add the option of a setting, shown in a section of the help."""
        self.settings[setting.key] = setting
        options: dict[str, Any] = {"dest": setting.key}
        if setting in _FLAGS:
            options |= {"action": "store_const", "const": "true"}
        else:
            options["metavar"] = _metavar(setting)
        if setting.type is bool and setting not in _FLAGS:
            options |= {"nargs": "?", "const": "true"}
        names = ["-h", "--help"] if setting is _HELP else [option(setting.key)]
        self.section(section).add_argument(*names, **options)

    def add_class(self, cls: type, sections: Mapping[str, Iterable[str]] = {}) -> None:
        """Add the settings of a configuration class, and the removed ones without help."""
        groups = groups_of(cls)
        by_key = {key: title for title, keys in sections.items() for key in keys}
        for key, setting in settings_of(cls).items():
            group = key.rpartition(".")[0]
            title = f"{group}: {groups[group].rstrip('.')}" if group else by_key.get(key, "Options")
            self.add_setting(setting, title)
        for key in removed_settings(cls):
            self.add_argument(option(key), dest=key, help=argparse.SUPPRESS)

    def parse(self, arguments: Sequence[str] | None) -> dict[str, str]:
        """The text of the options that were given, by key."""
        words = with_dashes(sys.argv[1:] if arguments is None else arguments)
        # Words may stand on both sides of an option, as in RUN --out FILE OTHER. That form of
        # parsing does not know that -- ends the options.
        parse = self.parse_known_args if "--" in words else self.parse_known_intermixed_args
        found, rest = parse(words)
        if rest:
            self.error(self._unknown(rest))
        return vars(found)

    def _unknown(self, rest: list[str]) -> str:
        word = next((a for a in rest if a.startswith("-")), rest[0]).split("=")[0]
        known = [o for action in self._actions for o in action.option_strings]
        return f"unknown option {word}; " + (did_you_mean(word, known, 0.5) or "see --help")

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Turn errors that the user can act on into one line and status 2."""
        try:
            yield
        except UserError as error:
            self.error(str(error))

    def value(self, given: Mapping[str, str], setting: Setting) -> Any:
        """The value of an option that is not a field of a configuration class."""
        if setting.key in given:
            value = setting.convert(given[setting.key])
            setting.check(value, {})
            return value
        if setting.default is ...:
            raise UserError(f"`{setting.key}` is required: {setting.help}")
        return setting.default

    def help_and_exit(self, defaults: Mapping[str, Any], shown: Sequence[str] | None) -> NoReturn:
        """Print the help of some options, or of all, and exit with status 0."""
        for action in self._actions:
            setting = self.settings.get(action.dest)
            if shown is not None and action.dest not in shown:
                action.help = argparse.SUPPRESS
            elif setting is not None:
                default = defaults.get(action.dest, setting.default)
                action.help = _help(setting, default).replace("%", "%%")
        print(self.format_help())
        raise SystemExit(0)


def _metavar(setting: Setting) -> str:
    if setting.choices and len(setting.choices) <= 4:
        return "{" + ",".join(setting.choices) + "}"
    if setting.is_pair:
        return "[LOW,HIGH]"
    names = {int: "N", float: "X", bool: "true|false", str: "TEXT"}
    return "NAME" if setting.choices else names[setting.kind]


def _help(setting: Setting, default: Any) -> str:
    sentence = as_options(setting.sentence)
    facts = [setting.range]
    if len(setting.choices) > 4:
        facts.append(", ".join(setting.choices))
    if default is not None and default is not ... and default is not False:
        facts.append(f"default {written(default)}")
    facts = [as_options(fact) for fact in facts if fact]
    return f"{sentence.rstrip('.')} ({'; '.join(facts)})." if facts else sentence


def written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)).replace(" ", "") if isinstance(value, tuple | list) else str(value)


def _accepted(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of a class, given by key; warn of settings that were removed."""
    known, removed = settings_of(cls), removed_settings(cls)
    accepted = {}
    for key, value in values.items():
        if key in removed:
            _warn(f"`{key}` is no longer a setting: {removed[key]}")
        elif key in known and isinstance(value, str) and value in dict(known[key].replaced):
            accepted[key] = dict(known[key].replaced)[value]
            _warn(f"`{key}` no longer takes {value}: {accepted[key]} is used instead")
        elif key in known:
            accepted[key] = known[key].convert(value)
    return accepted


def _warn(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {one_line(as_options(text))}", file=sys.stderr)


def _parse_class(
    command: str,
    cls: type[Config],
    arguments: Sequence[str] | None,
    others: Iterable[Setting] = (),
    words: Sequence[str] = (),
) -> Config:
    """The configuration of a command whose options are the settings of one class, and others.

    Args:
        command: Name of the command.
        cls: The class.
        arguments: Words of the command line.
        others: Settings that are not of the class.
        words: Keys of settings that may be given as words without the name of their option.
    """
    parser = Parser(command, COMMANDS[command])
    if words:
        names = " ".join(f"[{key.upper()}]" if key == "other" else key.upper() for key in words)
        parser.usage = f"fastreid-al {command} {names} [--OPTION VALUE]..."
    parser.add_class(cls)
    # An option of the same name would overwrite the word.
    for key in words:
        parser.add_argument(f"word {key}", nargs="?", metavar=key.upper(), help=argparse.SUPPRESS)
    for setting in others:
        parser.add_setting(setting)
    parser.add_setting(_HELP)
    given = parser.parse(arguments)
    if "help" in given:
        parser.help_and_exit({}, None)
    with parser.refusing():
        given = _with_words(_with_manifest(given), words)
        values = _accepted(cls, given)
        for key, setting in settings_of(cls).items():
            if setting.default is ...:
                values[key] = parser.value(given, setting)
        required = {k: v for k, v in values.items() if settings_of(cls)[k].default is ...}
        return with_values(cls(**required), values)


def _with_words(given: dict[str, str], words: Sequence[str]) -> dict[str, str]:
    """Give the words of a command line the keys of their settings."""
    given = dict(given)
    for key in words:
        word = given.pop(f"word {key}", None)
        if word is not None and key in given:
            raise UserError(
                f"`{key}` is given twice: {printable(word)} and {printable(given[key])}"
            )
        if word is not None:
            given[key] = word
    return given


def parse_evaluation(arguments: Sequence[str] | None = None) -> EvaluationConfig:
    """Parse the options of `evaluate`."""
    return _parse_class("evaluate", EvaluationConfig, arguments, (_MANIFEST,))


def parse_export(arguments: Sequence[str] | None = None) -> ExportConfig:
    """Parse the options of `export`."""
    return _parse_class("export", ExportConfig, arguments, words=("run",))


def parse_extraction(arguments: Sequence[str] | None = None) -> ExtractionConfig:
    """Parse the options of `extract`."""
    return _parse_class("extract", ExtractionConfig, arguments)


def parse_search(arguments: Sequence[str] | None = None) -> SearchConfig:
    """Parse the options of `search`."""
    return _parse_class("search", SearchConfig, arguments, words=("run",))


def parse_report(arguments: Sequence[str] | None = None) -> ReportConfig:
    """Parse the options of `report`."""
    return _parse_class("report", ReportConfig, arguments, words=("run", "other"))


def parse_annotation(arguments: Sequence[str] | None = None) -> AnnotationConfig:
    """Parse the options of `annotate`."""
    return _parse_class("annotate", AnnotationConfig, arguments, words=("run",))


def parse_simulation(arguments: Sequence[str] | None = None) -> SimulationConfig:
    """Parse the options of `simulate`."""
    return _parse_class("simulate", SimulationConfig, arguments)


def parse_diagnosis(arguments: Sequence[str] | None = None) -> None:
    """Parse the options of `doctor`, which takes none but --help."""
    parser = Parser("doctor", COMMANDS["doctor"])
    parser.add_setting(_HELP)
    if "help" in parser.parse(arguments):
        parser.help_and_exit({}, None)


def parse_synthesis(arguments: Sequence[str] | None = None) -> tuple[Path, SyntheticConfig]:
    """Parse the options of `synthesize`: the folder to write into, and the set."""
    parser = Parser("synthesize", COMMANDS["synthesize"])
    parser.add_setting(_OUT)
    parser.add_setting(_SIZE)
    parser.add_class(SyntheticConfig)
    parser.add_setting(_HELP)
    given = parser.parse(arguments)
    with parser.refusing():
        large = parser.value(given, _SIZE) == "msmt17"
        size = MSMT17_SIZE if large else SyntheticConfig()
        if "help" in given:
            parser.help_and_exit(flatten(size), None)
        out = Path(parser.value(given, _OUT))
        return out, with_values(size, _accepted(SyntheticConfig, given))


def parse_training(
    arguments: Sequence[str] | None = None,
) -> tuple[RunConfig, argparse.Namespace]:
    """Parse the options of `train`.

    The defaults are the recipe of the image set or, with --resume, the configuration of the run.
    The configuration file overrides them, and the options override the file.

    Returns:
        The configuration, and the options that are not part of it: resume and dry_run.
    """
    parser = Parser("train", COMMANDS["train"], SECTIONS)
    for title, keys in SECTIONS.items():
        for setting in (*TRAINING_OPTIONS, _HELP, _HELP_ALL):
            if setting.key in keys:
                parser.add_setting(setting, title)
    parser.add_class(RunConfig, SECTIONS)
    given = parser.parse(arguments)
    with parser.refusing():
        return _training(parser, given)


def _training(parser: Parser, given: dict[str, str]) -> tuple[RunConfig, argparse.Namespace]:
    file = Path(parser.value(given, _CONFIG)) if "config" in given else None
    values = {} if file is None else read_settings(file)
    if file is not None:
        _refuse_unknown(file, values)
    values |= _with_manifest(given)
    resume = parser.value(values, _RESUME)
    config = with_values(_defaults(parser, values, resume), _accepted(RunConfig, values))
    if "help" in given or "help_all" in given:
        parser.help_and_exit(flatten(config), None if "help_all" in given else _FIRST)
    if resume and not config.run_dir:
        raise UserError("`resume` needs `run_dir`, the folder of the run to continue")
    if parser.value(values, _PRINT_CONFIG):
        print(_as_yaml(config), end="")
        raise SystemExit(0)
    dry_run = parser.value(values, _DRY_RUN)
    return config, argparse.Namespace(resume=resume, dry_run=dry_run)


def _with_manifest(given: dict[str, str]) -> dict[str, str]:
    """Replace the option `manifest` by the settings that it stands for."""
    given = dict(given)
    manifest = given.pop("manifest", None)
    if manifest is None:
        return given
    for key in ("dataset", "data_root"):
        if given.get(key, "manifest") != "manifest":
            raise UserError(f"`manifest` and `{key}` name two image sets; give one of them")
    return given | {"dataset": "manifest", "data_root": manifest}


def _defaults(parser: Parser, values: Mapping[str, Any], resume: bool) -> RunConfig:
    """The configuration of the run that is resumed, or else the recipe of the image set."""
    run_dir = parser.value(values, settings_of(RunConfig)["run_dir"])
    if resume and run_dir and os.path.isfile(saved := Path(run_dir) / "config.json"):
        return with_values(RunConfig(), _accepted(RunConfig, read_settings(saved)))
    known = settings_of(RunConfig)
    dataset = parser.value(values, known["dataset"])
    return recipe(dataset, parser.value(values, _RECIPE), parser.value(values, known["method"]))


def _refuse_unknown(path: Path, values: Mapping[str, Any]) -> None:
    known = {
        *settings_of(RunConfig),
        *removed_settings(RunConfig),
        *(s.key for s in TRAINING_OPTIONS),
    }
    for key, value in values.items():
        if key in groups_of(RunConfig):
            raise UserError(f"{path}: got {value!r} for {key}, expected a group of settings")
        if key not in known:
            hint = did_you_mean(key, known) or "see --help-all"
            raise UserError(f"{path}: unknown setting {key}; {hint}")


def _as_yaml(config: RunConfig) -> str:
    import yaml

    # JSON in between, because YAML has no tuples.
    return cast(str, yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False))


def parse_ledger(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of `ledger`.

    Returns:
        `command` (a key of `_LEDGER_COMMANDS`), `file`, and the options of the command.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = _command("fastreid-al ledger", COMMANDS["ledger"], _LEDGER_COMMANDS, words)
    parser = Parser(f"ledger {name}", _LEDGER_COMMANDS[name])
    parser.usage = f"fastreid-al ledger {name} FILE [--OPTION VALUE]..."
    about = "Folder of a run, or SQLite file or PostgreSQL URL of a ledger."
    parser.add_argument("file", nargs="?", help=about)
    options = {"export": _EXPORT, "import": _IMPORT, "undo": (_EVENT, _ANNOTATOR)}
    options["digest"] = (_AS_OF,)
    settings = options.get(name, ())
    for setting in (*settings, _HELP):
        parser.add_setting(setting)
    if name == "export":
        about = "Paths of two images: only what follows about this pair."
        parser.section("Options").add_argument("--pair", nargs=2, metavar="PATH", help=about)
    given: dict[str, Any] = parser.parse(words[1:])
    if "help" in given:
        parser.help_and_exit({}, None)
    with parser.refusing():
        if "file" not in given:
            raise UserError(
                "name the folder of a run, or the SQLite file or the PostgreSQL URL of a ledger"
            )
        values = {s.key: parser.value(given, s) for s in settings}
        if name == "export":
            _check_export(values, given.get("pair"))
    pair = {"pair": given.get("pair")} if name == "export" else {}
    return argparse.Namespace(command=name, file=given["file"], **values, **pair)


def _check_export(values: Mapping[str, Any], pair: Sequence[str] | None) -> None:
    """Refuse options of another export.

    Raises:
        UserError: One of them does not apply.
    """
    is_labels = values["what"] == "labels"
    if is_labels and (values["as_of"] is not None or pair is not None):
        raise UserError("`as_of` and `pair` select answers; `what` labels takes `epoch`")
    if not is_labels and values["epoch"] is not None:
        raise UserError("`epoch` selects labels; set `what` to labels")


def parse_data(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of `data check`.

    Returns:
        `root`, `dataset`, `json`, and the settings by which a set is read.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = _command("fastreid-al data", COMMANDS["data"], _DATA_COMMANDS, words)
    parser = Parser(f"data {name}", _DATA_COMMANDS[name])
    parser.usage = f"fastreid-al data {name} FOLDER [--OPTION VALUE]..."
    parser.add_argument("root", nargs="?", help="Folder of the images.")
    known = settings_of(EvaluationConfig)
    keys = ("dataset", "camera_pattern", "identity_pattern", "tracklet_frames")
    settings = [known[key] for key in keys]
    for setting in (*settings, _MANIFEST, _JSON, _HELP):
        parser.add_setting(setting)
    given = parser.parse(words[1:])
    if "help" in given:
        parser.help_and_exit({}, None)
    with parser.refusing():
        root = given.pop("root", None)
        given = _with_manifest(given)
        root = root or given.pop("data_root", None)
        if root is None:
            raise UserError("name the folder of the images, or a CSV file with `manifest`")
        values = {s.key: parser.value(given, s) for s in (*settings, _JSON)}
    return argparse.Namespace(root=root, **values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `fastreid-al COMMAND`, which is the same as `python -m fastreid_al.COMMAND`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"fastreid-al {__version__}")
        return
    about = "Person re-identification from unlabelled images, with a few questions to a person."
    name = _command("fastreid-al", about, COMMANDS, words)
    module = import_module(f".{_MODULES.get(name, name)}", __package__)
    run_main(lambda: module.main(words[1:]))


def _command(program: str, about: str, commands: Mapping[str, str], words: list[str]) -> str:
    """The command that the first word names; prints the list of commands for --help."""
    if not words:
        print(f"{program}: name a command: {', '.join(commands)}", file=sys.stderr)
        raise SystemExit(2)
    if words[0] in ("-h", "--help"):
        lines = [f"  {name:<12}{sentence}" for name, sentence in commands.items()]
        print(f"usage: {program} COMMAND [--OPTION VALUE]...", "", about, "", *lines, sep="\n")
        print(f"\nThe options of a command: {program} COMMAND --help")
        raise SystemExit(0)
    if words[0] not in commands:
        hint = did_you_mean(words[0], commands) or f"expected one of {', '.join(commands)}"
        print(f"{program}: unknown command {printable(words[0])}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    return words[0]


def run_main(main: Callable[[], None]) -> None:
    """Run a command: an error that the user can act on is one line and status 2, Ctrl-C is 130."""
    for stream in (sys.stdout, sys.stderr):
        # A name may hold characters that the encoding of the terminal lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _run_and_flush(main)
    except BrokenPipeError:
        if not _lost_its_reader(sys.stdout):
            raise
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _FULL or not _is_full(sys.stdout):
            raise
        sys.stderr.write(f"error: could not write the output ({error.strerror})\n")
        raise SystemExit(2) from None
    except UserError as error:
        text = f"error: {as_options(str(error))}"
        if not error.said:
            # One write, so that the lines of several ranks stay apart.
            sys.stderr.write(f"{text}\n")
        _report_to_torchrun(text)
        _lost_its_reader(sys.stdout)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _run_and_flush(main: Callable[[], None]) -> None:
    """Run a command, and write the rest of its output; a UserError is raised first."""
    try:
        main()
    except SystemExit:
        if sys.stdout is not None:
            sys.stdout.flush()
        raise
    if sys.stdout is not None:
        sys.stdout.flush()


def _lost_its_reader(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe that its reader has closed; the rest of its output is dropped.

    Python would otherwise print an error when it flushes the stream at exit.
    """
    if stream is None or not hasattr(select, "poll"):
        return False
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _is_full(stream: TextIO | None) -> bool:
    """Whether the disk of a stream is full; the rest of its output is dropped."""
    if stream is None:
        return False
    try:
        # What failed may have left the buffer, and then a flush alone succeeds.
        stream.write("\n")
        stream.flush()
    except OSError as error:
        if error.errno not in _FULL:
            return False
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return True
    except ValueError:  # it is closed
        pass
    return False


def _report_to_torchrun(text: str) -> None:
    """Have torchrun, which prints a summary when a rank fails, print the reason."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError), replacing(Path(file)) as out:
        out.write(json.dumps({"message": {"message": text, "extraInfo": extra}}).encode())
