"""What a user can mend: one exception type, whose text says which file or node, what was expected, and what to do."""


class BnfoldError(Exception):
    """Bad input or usage. The command line prints its text as one line and exits with 2."""
