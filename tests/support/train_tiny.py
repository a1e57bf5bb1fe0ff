"""`fastreid_al.train` in a process that knows the model of the tests as well."""

from __future__ import annotations

from fastreid_al.cli import run_main
from fastreid_al.train import main
from tests.support import tiny

__all__ = ["tiny"]

if __name__ == "__main__":
    run_main(main)
