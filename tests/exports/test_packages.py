"""Packages that only an export needs, and libraries that print."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest

from fastreid_al.errors import UserError
from fastreid_al.exports import require_packages
from fastreid_al.exports.packages import quiet


@pytest.mark.parametrize(
    ("form", "package", "extra"),
    [
        *(("onnx", package, "export") for package in ("onnx", "onnxscript", "onnxruntime")),
        ("openvino", "openvino", "cpu"),
    ],
)
def test_a_missing_package_is_one_line_with_its_extra(
    form: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as said:
        require_packages(form)
    line = f"`what` {form} needs {package}: pip install 'fastreid_al[{extra}]'"
    assert str(said.value) == line
    require_packages("safetensors")


def test_libraries_print_nothing_and_can_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("x")
        print("x", file=sys.stderr)
        warnings.warn("x", stacklevel=1)
        logging.getLogger("x").warning("x")
    assert tuple(capsys.readouterr()) == ("", "")
    assert logging.root.manager.disable == 0
    with pytest.warns(UserWarning, match="again"):
        warnings.warn("again", stacklevel=1)
