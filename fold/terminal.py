"""Texts for a terminal: names from files may hold anything."""

from fold.errors import printable


def escape(text: str) -> str:
    """`text` without rich's markup in it and without characters that a terminal obeys, such as ESC."""
    from rich import markup  # noqa: PLC0415

    return markup.escape(printable(text))
