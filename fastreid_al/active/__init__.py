"""Questions to a person, and what is done with the answers: labels and answers, no model."""

from .annotators import Oracle, Replay, Terminal
from .asker import Asker
from .closure import Closure
from .ledger import ImageKeys, Ledger
from .merge import propose_merges
from .questions import Annotator, Answer, NoAnswer, Question, QuitAsking, UndoLast, Verdict
from .refine import Questions, Refined, refine
from .split import propose_splits

__all__ = [
    "Annotator",
    "Answer",
    "Asker",
    "Closure",
    "ImageKeys",
    "Ledger",
    "NoAnswer",
    "Oracle",
    "Question",
    "Questions",
    "QuitAsking",
    "Refined",
    "Replay",
    "Terminal",
    "UndoLast",
    "Verdict",
    "propose_merges",
    "propose_splits",
    "refine",
]
