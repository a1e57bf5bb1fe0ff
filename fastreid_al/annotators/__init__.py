"""Who answers questions: true identities, the answers of another run, or a person at a terminal.

An annotator is an object with a `name` and a method `answer(question)` that returns a `Verdict`. It
is given to `fastreid_al.runs.run_training` as an object, or by name: a name of
`fastreid_al.plugins.BUILT_IN`, or an entry point of another package in the group
"fastreid_al.annotators", which stands for a function or class that takes an `AnnotatorContext` and
returns the annotator.
"""

from .context import AnnotatorContext, load_annotator
from .oracle import Oracle
from .replay import Replay
from .terminal import Terminal

__all__ = ["AnnotatorContext", "Oracle", "Replay", "Terminal", "load_annotator"]
