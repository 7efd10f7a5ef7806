"""The one exception that stands for a mistake in the input rather than in the program."""


class InputError(ValueError):
    """Input that cannot be used: one sentence with what it is, what is allowed and what to do.

    Library functions raise it; a command prints it as a single line and exits with status 2.
    """
