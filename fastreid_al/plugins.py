"""Finds strategies, annotators, data sets and models by name, built in or from other packages.

An extension is an entry point: a name in one of the groups below and the "module:object" that it
names. Built-in extensions are written the same way, so that nothing is imported before its use.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import SettingError

STRATEGIES = "fastreid_al.strategies"
ANNOTATORS = "fastreid_al.annotators"
DATASETS = "fastreid_al.datasets"
MODELS = "fastreid_al.models"

#: The extensions that this package brings, by group.
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    STRATEGIES: {
        "ucal": "fastreid_al.methods.ucal:ask_snps_then_mpps",
        "gain": "fastreid_al.active.strategies.gain:ask_by_expected_gain",
        "spal": "fastreid_al.active.strategies.spal:ask_farthest_and_nearest",
        "random": "fastreid_al.active.strategies.random_pairs:ask_random_pairs",
    },
    ANNOTATORS: {
        "oracle": "fastreid_al.annotators.oracle:make_oracle",
        "terminal": "fastreid_al.annotators.terminal:make_terminal",
        "web": "fastreid_al.annotators.web:make_web",
        "replay": "fastreid_al.annotators.replay:make_replay",
    },
    DATASETS: {
        "synthetic": "fastreid_al.synthetic.dataset:read_synthetic",
        "market1501": "fastreid_al.data.market:read_market1501",
        "dukemtmcreid": "fastreid_al.data.duke:read_dukemtmcreid",
        "msmt17": "fastreid_al.data.msmt17:read_msmt17",
        "veri776": "fastreid_al.data.veri:read_veri776",
        "vehicleid": "fastreid_al.data.vehicleid:read_800",
        "vehicleid1600": "fastreid_al.data.vehicleid:read_1600",
        "vehicleid2400": "fastreid_al.data.vehicleid:read_2400",
        "cuhk03_labeled": "fastreid_al.data.cuhk03:read_labeled",
        "cuhk03_detected": "fastreid_al.data.cuhk03:read_detected",
        "mars": "fastreid_al.data.mars:read_mars",
        "wildlife": "fastreid_al.data.wildlife:read_wildlife",
        "manifest": "fastreid_al.data.manifest:read_manifest",
        "folder": "fastreid_al.data.folder:read_folder",
    },
    MODELS: {
        "resnet18": "fastreid_al.models.resnet:resnet",
        "resnet34": "fastreid_al.models.resnet:resnet",
        "resnet50": "fastreid_al.models.resnet:resnet",
        "resnet101": "fastreid_al.models.resnet:resnet",
        "osnet_x1_0": "fastreid_al.models.osnet:osnet",
        "osnet_x0_75": "fastreid_al.models.osnet:osnet",
        "osnet_x0_5": "fastreid_al.models.osnet:osnet",
        "osnet_x0_25": "fastreid_al.models.osnet:osnet",
    },
}


@cache
def available(group: str) -> Mapping[str, EntryPoint]:
    """The extensions of a group by name; one of another package replaces a built-in one.

    Args:
        group: `STRATEGIES`, `ANNOTATORS`, `DATASETS` or `MODELS`.
    """
    found = {name: EntryPoint(name, value, group) for name, value in BUILT_IN[group].items()}
    for point in entry_points(group=group):
        found[point.name] = point
    return found


def load(group: str, name: str, key: str) -> Any:
    """Import the extension of a name.

    Args:
        group: `STRATEGIES`, `ANNOTATORS`, `DATASETS` or `MODELS`.
        name: Its name.
        key: Key of the setting that holds the name, for the message.

    Raises:
        SettingError: No extension has this name; the message names the nearest one.
    """
    known = available(group)
    if name in known:
        return known[name].load()
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else ""
    raise SettingError(key, name, f"one of {', '.join(known)}", hint)
