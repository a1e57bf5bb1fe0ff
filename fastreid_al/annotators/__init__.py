"""Who answers questions: an oracle that knows the identities, the ledger of another run, or a person at the terminal."""

from .annotators import Oracle, Replay, Terminal

__all__ = ["Oracle", "Replay", "Terminal"]
