"""The Open Inference Protocol: bytes to arrays and back, and what a model takes."""

from service.protocol.classification import classify
from service.protocol.datatypes import DTYPES, NAMES, NOT_IN_JSON
from service.protocol.infer_body import InferRequest, cached_answer, decode, encode
from service.protocol.jsontext import json_array, parse_object, render_json, render_verdict
from service.protocol.outputs import select
from service.protocol.parameters import Parameters, flag, parameters_of, schedule
from service.protocol.signature import Signature
from service.protocol.strings import decode_text
from service.protocol.tensors import check_booleans, checked_shape, flatten, from_bytes, numbers, to_bytes, wire_dtype

__all__ = [
    "DTYPES",
    "NAMES",
    "NOT_IN_JSON",
    "InferRequest",
    "Parameters",
    "Signature",
    "cached_answer",
    "check_booleans",
    "checked_shape",
    "classify",
    "decode",
    "decode_text",
    "encode",
    "flag",
    "flatten",
    "from_bytes",
    "json_array",
    "numbers",
    "parameters_of",
    "parse_object",
    "render_json",
    "render_verdict",
    "schedule",
    "select",
    "to_bytes",
    "wire_dtype",
]
