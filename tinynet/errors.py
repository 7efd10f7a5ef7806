"""The exception for a mistake in the input, not in the program."""


class InputError(ValueError):
    """Unusable input; the message is one line: what happened, what is allowed, what to do.

    Library functions raise it. A command prints the line and exits with status 2.
    """
