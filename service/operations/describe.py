"""The protocol's metadata of the server and its models, for HTTP and gRPC."""

from typing import Any

from fold import __version__
from fold.artifact import TensorSpec
from service.repository import Model, Repository

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
]
"""The protocol's extensions that are supported in full."""


def package_version() -> str:
    return __version__


def model_metadata(model: Model, repository: Repository) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": repository.versions(model.name),
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(spec) for spec in model.manifest.inputs],
        "outputs": [_tensor(spec) for spec in model.manifest.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
