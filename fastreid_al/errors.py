"""Errors whose message is one line for the person at the terminal: what is wrong, and what to do."""


class UserError(Exception):
    """Something that the user can mend; entry points print its message and exit with status 2."""

    #: Whether another process of the run says the same.
    said = False


class DataError(UserError):
    """An image set that cannot be read as asked."""


class WeightsError(UserError):
    """A weights file that is missing or does not fit the network."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read, or continued."""


class TrainingError(UserError):
    """A run that cannot go on; its last checkpoint is intact."""


class LedgerError(UserError):
    """A ledger of answers that cannot be used as asked."""
