"""Parameters of a request, of its inputs and of its outputs, over HTTP or gRPC. Unknown ones are ignored.

So are `sequence_id` and the like, which change nothing for a stateless model.
"""

from typing import Any

from service.errors import BadRequestError, shown

MAX_WHOLE = (1 << 63) - 1
MICROSECONDS = 1e-6

Parameters = dict[str, Any]


def parameters_of(holder: dict[str, Any]) -> Parameters:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise BadRequestError(f"parameters is {shown(parameters)}; expected an object")
    if "shared_memory_region" in parameters:
        raise BadRequestError("shared memory is not offered; send the tensor in the body")
    return parameters


def flag(parameters: Parameters, key: str, *, default: bool) -> bool:
    """`default` if it is left out or null, as every parameter may be."""
    value = parameters.get(key)
    if value is None:
        return default
    if type(value) is not bool:
        raise BadRequestError(f"parameters.{key} is {shown(value)}; expected true or false")
    return value


def whole(parameters: Parameters, key: str) -> int:
    """A whole number from 0; 0 if it is left out or null."""
    value = parameters.get(key)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= MAX_WHOLE:
        raise BadRequestError(f"parameters.{key} is {shown(value)}; expected a whole number from 0")
    return value


def schedule(parameters: Parameters) -> tuple[int, float | None]:
    """Priority (1 comes first, 0 is the default), and the seconds until the request must have begun or None."""
    if not parameters:
        return 0, None
    microseconds = whole(parameters, "timeout")
    return whole(parameters, "priority"), microseconds * MICROSECONDS if microseconds else None
