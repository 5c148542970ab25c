"""What a user can mend: one exception type, whose text says which file or node, what was expected, and what to do."""


class BnfoldError(Exception):
    """Bad input or usage. The command line prints its text as one line and exits with 2."""


def first_line(error: BaseException) -> str:
    """What an exception of another library says, as one line of ours may repeat it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
