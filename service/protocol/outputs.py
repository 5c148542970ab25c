"""Which outputs a request asks for, and in which form: as they are, or as their highest values with index and label."""

from collections.abc import Iterable
from typing import Any

from service.errors import BadRequestError, shown
from service.protocol.datatypes import NOT_IN_JSON, NOT_RANKED, Output, Selected
from service.protocol.parameters import Parameters, flag, whole
from service.protocol.signature import Signature


def select(listed: Iterable[tuple[Any, Parameters]], signature: Signature, *, binary: bool) -> Selected:
    """The outputs that are listed by name with their parameters, all if none is listed; `binary` is the default of
    their parameter `binary_data`."""
    selected: dict[str, Output] = {}
    for name, parameters in listed:
        if type(name) is not str or name not in signature.outputs:
            known = ", ".join(repr(output) for output in signature.outputs)
            raise BadRequestError(f"no output is named {shown(name)}; expected {known}")
        if name in selected:
            raise BadRequestError(f"output {name!r} was asked for twice; expected once")
        in_binary = flag(parameters, "binary_data", default=binary)
        classes = whole(parameters, "classification") if parameters else 0
        selected[name] = _checked((name, in_binary, classes), signature)
    return tuple(selected.values()) or every_output(signature, binary=binary)


def every_output(signature: Signature, *, binary: bool) -> Selected:
    return tuple([_checked((name, binary, 0), signature) for name in signature.outputs])


def _checked(output: Output, signature: Signature) -> Output:
    """Raise `BadRequestError` for a form that the datatype does not have."""
    name, binary, classes = output
    if binary and not classes:
        return output
    datatype = signature.outputs[name].datatype
    if classes and datatype in NOT_RANKED:
        raise BadRequestError(
            f"output {name!r}: classification needs numbers, this output is {datatype}; ask for the tensor"
        )
    if not classes and datatype in NOT_IN_JSON:
        raise BadRequestError(
            f"output {name!r}: {datatype} has no form in JSON; ask for it with parameters.binary_data"
        )
    return output
