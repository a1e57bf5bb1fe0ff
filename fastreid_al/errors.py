"""Errors that the user can act on: one line that says what is wrong and what to do."""


class UserError(Exception):
    """Something that the user can act on; entry points print its message and exit with status 2."""

    #: Whether another process of the run says the same.
    said = False


class SettingError(UserError):
    """A setting whose value cannot be used.

    The message names settings by their key in backquotes, such as `batch.size`. The command line
    prints them as options; library code never spells an option.

    Args:
        key: Key of the setting, such as "batch.size".
        got: Its value.
        expected: What the setting takes, such as "2 or more".
        hint: What to do, as a clause; empty when `expected` says enough.
    """

    def __init__(self, key: str, got: object, expected: str, hint: str = "") -> None:
        super().__init__(
            f"`{key}`: got {got!r}, expected {expected}" + (f"; {hint}" if hint else "")
        )
        self.key = key
        self.got = got
        self.expected = expected
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the arguments, not the message: ranks send each other their errors."""
        return type(self), (self.key, self.got, self.expected, self.hint)


class DataError(UserError):
    """An image set that cannot be read as asked."""


class WeightsError(UserError):
    """A weights file that is missing or does not fit the network."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, read, or continued."""


class TrainingError(UserError):
    """A run that cannot continue; its last checkpoint is intact."""


class LedgerError(UserError):
    """A ledger of answers that cannot be used as asked."""
