"""What is known about pairs of images: questions, answers, the must-link and cannot-link closure,
and the ledger.
"""

from .asker import Asker
from .closure import Closure
from .ledger import ImageKeys, Ledger
from .question import (
    Annotator,
    Answer,
    NoAnswer,
    Question,
    QuitAsking,
    SheetAnnotator,
    UndoLast,
    Verdict,
)

__all__ = [
    "Annotator",
    "Answer",
    "Asker",
    "Closure",
    "ImageKeys",
    "Ledger",
    "NoAnswer",
    "Question",
    "QuitAsking",
    "SheetAnnotator",
    "UndoLast",
    "Verdict",
]
