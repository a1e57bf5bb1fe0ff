"""Optional packages that a form needs, and libraries that print while they convert."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib import import_module

from ..errors import UserError

#: Packages of each form that is not written by PyTorch alone, and the extra that brings them.
_NEEDED = {
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "export"),
    "openvino": (("openvino",), "cpu"),
}


def require_packages(form: str) -> None:
    """Refuse a form whose packages are not installed.

    Raises:
        UserError: The message names the missing package and the extra that brings it.
    """
    packages, extra = _NEEDED.get(form, ((), ""))
    for package in packages:
        try:
            with quiet():
                import_module(package)
        except ImportError as error:
            raise UserError(
                f"`what` {form} needs {package}: pip install 'fastreid_al[{extra}]'"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what libraries print, log and warn of while they convert."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
