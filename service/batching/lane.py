"""The lane of a request: requests of one lane can be merged into one batch."""

Lane = tuple[tuple[int, ...], ...]
