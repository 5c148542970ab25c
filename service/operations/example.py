"""An example of a request: a row that the model was published with, as a body for infer."""

from typing import Any

import numpy as np

from fold.arrays import Arrays, first_rows
from fold.artifact import canary_inputs
from fold.errors import BnfoldError
from fold.inputs import drawn_inputs
from service.batching import on_thread
from service.errors import NotFoundError
from service.protocol import NOT_IN_JSON
from service.repository import Model

MOST_VALUES = 1 << 16
"""Values of an example. A larger one would take megabytes of JSON."""


async def example_request(model: Model) -> dict[str, Any]:
    """The first row of the canary, or a drawn one if the model was published without. Raises `NotFoundError` if there
    is no example that JSON can hold."""

    def read() -> Arrays:
        inputs = canary_inputs(model.session.version.path) or drawn_inputs(model.manifest, 1, 0)
        return first_rows(inputs, 1) if model.signature.batched else inputs

    try:
        inputs = await on_thread("read an example", read)
    except BnfoldError as error:
        raise NotFoundError(f"model {model} has no example: its inputs cannot be drawn") from error
    specs = {spec.name: spec for spec in model.manifest.inputs}
    if sum(array.size for array in inputs.values()) > MOST_VALUES or any(
        specs[name].datatype in NOT_IN_JSON for name in inputs
    ):
        raise NotFoundError(f"model {model} has no example that is written in JSON; send binary tensors")
    return {"inputs": [_tensor(name, specs[name].datatype, array) for name, array in inputs.items()]}


def _tensor(name: str, datatype: str, array: np.ndarray) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}
