class UserError(Exception):
    """A mistake the caller can fix: one line names the thing, its value, the remedy (exit 2)."""


class ConfigError(UserError):
    """A configuration value that is unknown, of the wrong type or out of range."""


class InputError(UserError):
    """A path, file or table that is missing, corrupt or not what its format promises."""


class RunError(Exception):
    """A run that started well and failed later, in one line (exit 1)."""
