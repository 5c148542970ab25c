"""Limits on what a file may ask for, each with an environment variable: a few bytes can ask for endless work."""

import os

from fold.errors import BnfoldError


def limit(setting: str, default: int, unit: str) -> int:
    """The limit that the environment variable `setting` gives, a whole number of `unit`; `default` where it is not set.

    Raises `BnfoldError` for another text.
    """
    written = os.environ.get(setting, "")
    if not written:
        return default
    if not written.isdigit():
        raise BnfoldError(f"{setting}: is {written!r}, expected a number of {unit}")
    return int(written)
