"""The Open Inference Protocol: bytes to arrays and back, and what a model takes."""

from service.protocol.classification import classify
from service.protocol.datatypes import NAMES, NOT_IN_JSON
from service.protocol.infer_body import (
    InferRequest,
    cached_answer,
    decode,
    decode_in_pieces,
    encode,
    encode_in_pieces,
    json_bytes,
    much_to_encode,
)
from service.protocol.jsontext import (
    json_array,
    may_hold_booleans,
    parse_object,
    render_json,
    render_verdict,
    written_json,
)
from service.protocol.outputs import select
from service.protocol.parameters import Parameters, flag, parameters_of, schedule
from service.protocol.pieces import (
    PIECE,
    VALUES,
    Capacity,
    Steps,
    Text,
    array_text,
    is_long,
    read_document,
)
from service.protocol.predict_body import EXPECTED, array_of_rows, columns_in_pieces, columns_of, rows_in_pieces
from service.protocol.signature import Signature
from service.protocol.strings import array_of_strings, count_strings, decode_text, keep_strings
from service.protocol.tensors import check_booleans, checked_shape, from_bytes, to_bytes, wire_dtype

__all__ = [
    "EXPECTED",
    "NAMES",
    "NOT_IN_JSON",
    "PIECE",
    "VALUES",
    "Capacity",
    "InferRequest",
    "Parameters",
    "Signature",
    "Steps",
    "Text",
    "array_of_rows",
    "array_of_strings",
    "array_text",
    "cached_answer",
    "check_booleans",
    "checked_shape",
    "classify",
    "columns_in_pieces",
    "columns_of",
    "count_strings",
    "decode",
    "decode_in_pieces",
    "decode_text",
    "encode",
    "encode_in_pieces",
    "flag",
    "from_bytes",
    "is_long",
    "json_array",
    "json_bytes",
    "keep_strings",
    "may_hold_booleans",
    "much_to_encode",
    "parameters_of",
    "parse_object",
    "read_document",
    "render_json",
    "render_verdict",
    "rows_in_pieces",
    "schedule",
    "select",
    "to_bytes",
    "wire_dtype",
    "written_json",
]
