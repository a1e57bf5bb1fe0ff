"""The network of a run as files for other programs, and proof that they compute its features."""

from .deployed import DeployedNet, describe, layout
from .gate import Reference, check_file, find_fault
from .packages import require_packages
from .runtimes import Runtime, open_file
from .tracker import check_torchreid, check_tracker
from .write import SUFFIXES, files_of, write_form

__all__ = [
    "SUFFIXES",
    "DeployedNet",
    "Reference",
    "Runtime",
    "check_file",
    "check_torchreid",
    "check_tracker",
    "describe",
    "files_of",
    "find_fault",
    "layout",
    "open_file",
    "require_packages",
    "write_form",
]
