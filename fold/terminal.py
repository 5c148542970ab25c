"""Texts for a terminal: names from files may hold anything, and be of any length."""

from fold.errors import printable

NAME_WIDTH = 40
"""Characters of a name in a line or a table: half of a terminal of 80 columns."""


def escape(text: str) -> str:
    """`text` without rich's markup in it and without characters that a terminal obeys, such as ESC."""
    from rich import markup  # noqa: PLC0415

    return markup.escape(printable(text))


def cut(text: str, width: int = NAME_WIDTH) -> str:
    """`text` with each word that is longer than `width` cut in its middle: names of layers differ at both ends."""
    head = (width - 1) // 2
    words = (word if len(word) <= width else f"{word[:head]}…{word[head + 1 - width :]}" for word in text.split(" "))
    return " ".join(words)
