"""Packages that are not required."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import importlib.abc, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "openvino_telemetry":
            print("imported", name)

sys.meta_path.insert(0, Watch())
{statement}
print(openvino.__name__, "openvino_telemetry" in sys.modules)
"""


def printed(statement: str) -> str:
    code = CODE.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_openvino_is_imported_without_its_usage_statistics() -> None:
    own = "from fastreid_al.optional import import_openvino; openvino = import_openvino()"
    assert printed(own) == "openvino False"
    # The plain import is what sends them.
    assert printed("import openvino").startswith("imported openvino_telemetry")
