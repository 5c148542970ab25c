"""The OpenAPI document of infer and predict, which FastAPI does not see."""

from typing import Any

from service.http.images import FORMATS
from service.http.npy import CONTENT_TYPE

_PARAMETERS = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]},
}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_OUTPUT = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "parameters": {
            **_PARAMETERS,
            "properties": {
                "binary_data": {"type": "boolean"},
                "classification": {"type": "integer", "minimum": 0, "description": "How many of the highest values"},
            },
        },
    },
}


def _tensor(*required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "shape", "datatype", *required],
        "properties": {
            "name": {"type": "string"},
            "shape": _SHAPE,
            "datatype": {"type": "string"},
            "parameters": _PARAMETERS,
            "data": {"type": "array", "items": {}},
        },
    }


_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {
            **_PARAMETERS,
            "properties": {
                "binary_data_output": {"type": "boolean", "default": False},
                "priority": {"type": "integer", "minimum": 0, "default": 0, "description": "1 comes first"},
                "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds until it must have begun"},
            },
        },
        "inputs": {"type": "array", "items": _tensor(), "minItems": 1},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_RESPONSE = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _tensor()},
    },
}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERRORS = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in (
        ("400", "The body, its tensors or their shapes are not what the model takes"),
        ("404", "No such model or version"),
        ("413", "The body is too large"),
        ("415", "The body is compressed in a way, or of a type, that is not read"),
        ("429", "The queue is full"),
        ("503", "The model is not ready, or the request could not begin in time"),
    )
}


def _named(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _infer(*path: str) -> dict[str, Any]:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 0},
        "description": "Bytes of the JSON, where binary tensors follow it; 0 if the body is nothing but one tensor",
    }
    return {
        "post": {
            "tags": ["v2"],
            "summary": "Infer",
            "description": "Outputs for the given inputs, as JSON or as binary tensors (Open Inference Protocol v2).",
            "operationId": "infer" if len(path) == 1 else "infer_version",
            "parameters": [*_named(*path), length],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _REQUEST}, "application/octet-stream": _BINARY},
            },
            "responses": {
                "200": {
                    "description": "The outputs",
                    "content": {"application/json": {"schema": _RESPONSE}, "application/octet-stream": _BINARY},
                },
                **_ERRORS,
            },
        }
    }


def _predict(*path: str) -> dict[str, Any]:
    instances = {"type": "array", "items": {}, "minItems": 1}
    reference = {"type": "boolean", "default": False, "description": "Whether the reference answers, too"}
    taken = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": instances, "reference": reference},
    }
    given = {
        "type": "object",
        "required": ["predictions"],
        "properties": {"predictions": {"type": "array"}, "reference": {"type": "object"}},
    }
    return {
        "post": {
            "tags": ["v1"],
            "summary": "Predict",
            "description": "Predictions for rows of numbers, as JSON or .npy, or for one image where the model "
            "declares preprocessing.",
            "operationId": "predict" if len(path) == 1 else "predict_version",
            "parameters": [
                *_named(*path),
                {"name": "reference", "in": "query", "required": False, "schema": reference},
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": taken}, **dict.fromkeys((CONTENT_TYPE, *FORMATS), _BINARY)},
            },
            "responses": {
                "200": {
                    "description": "The predictions",
                    "content": {"application/json": {"schema": given}, CONTENT_TYPE: _BINARY},
                },
                **_ERRORS,
            },
        }
    }


PATHS = {
    "/v1/models/{name}:predict": _predict("name"),
    "/v1/models/{name}/versions/{version}:predict": _predict("name", "version"),
    "/v2/models/{name}/infer": _infer("name"),
    "/v2/models/{name}/versions/{version}/infer": _infer("name", "version"),
}
