"""Large JSON, read and written in pieces of a millisecond, so that other requests are answered between them.

A function that works in pieces is a generator: it yields after each, and returns its result (`Steps`).
"""

from service.protocol.pieces.capacity import Capacity
from service.protocol.pieces.document import Bulk, Document, read_document
from service.protocol.pieces.numbers import (
    ANY,
    array_of,
    count_of,
    flatten_list,
    nesting,
    packed_list,
    row_shape,
    tensor_of,
)
from service.protocol.pieces.text import PIECE, Steps, Text, is_long
from service.protocol.pieces.writing import VALUES, array_text

__all__ = [
    "ANY",
    "PIECE",
    "VALUES",
    "Bulk",
    "Capacity",
    "Document",
    "Steps",
    "Text",
    "array_of",
    "array_text",
    "count_of",
    "flatten_list",
    "is_long",
    "nesting",
    "packed_list",
    "read_document",
    "row_shape",
    "tensor_of",
]
