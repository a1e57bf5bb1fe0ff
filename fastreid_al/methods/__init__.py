"""One file tells one paper; what methods share is in the files beside them."""

from .nnct import NNCT
from .supervised import Supervised
from .ucal import UCAL

__all__ = ["NNCT", "UCAL", "Supervised"]
