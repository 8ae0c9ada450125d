def one_line(text: str) -> str:
    """Return the lines of a text as one; spaces in a line, as those of a path, stay as they are."""
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line)


class OneLineError(Exception):
    """An error whose text is one line, whatever a library or an input put into it."""

    def __str__(self) -> str:
        """Return the text without line breaks."""
        return one_line(super().__str__())


class UserError(OneLineError):
    """A mistake the caller can fix: one line names the thing, its value, the remedy (exit 2)."""


class ConfigError(UserError):
    """A configuration value that is unknown, of the wrong type or out of range."""


class InputError(UserError):
    """A path, file or table that is missing, corrupt or not what its format promises."""


class AwayError(InputError):
    """What cannot be read now, for want of access or of a share: not for what it holds."""


class MissingError(AwayError):
    """A file, or an object of a store, that is not there."""


class DamagedRowsError(InputError):
    """Model-ready rows that are not what was written: met by the one worker that reads them."""


class RunError(OneLineError):
    """A run that started well and failed later, in one line (exit 1)."""


class UnrepeatableError(RunError):
    """A kernel that cannot repeat its sums, where `train.deterministic` asks for it."""


class ResourcesUnavailableError(RunError):
    """What a run lacks now and may have later: a disk that takes its files, room for workers."""


class StoreUnavailableError(RunError):
    """A store, or the disk of its copies, that gives or takes no files now, and may later."""


class LeaseHeldError(RunError):
    """A place in a store to which another process writes; `holder` says which."""

    def __init__(self, text: str, holder: str = "another process") -> None:
        super().__init__(text)
        self.holder = holder


class RowsUnavailableError(StoreUnavailableError):
    """Model-ready rows that a store does not give now: met by the one worker that reads them."""


class LeaseLostError(RunError):
    """A run in a store that another machine has taken over."""


def error_of_kind(kind: str, text: str) -> UserError | RunError:
    """Return the error of another process, of which the name of its class and its text came."""
    kinds: list[type[UserError] | type[RunError]] = [UserError, RunError]
    for known in kinds:
        kinds += known.__subclasses__()
    return {known.__name__: known for known in kinds}.get(kind, RunError)(text)
