"""The exceptions that commands turn into one readable line and an exit code."""


class UserError(ValueError):
    """Bad input, found before work starts.

    The message names the value, what was allowed and the fix. Commands print it in one line, without a
    traceback, and exit with code 2.
    """


class JobsFailedError(RuntimeError):
    """Some jobs failed (exit code 1); the others are done and their results kept."""
