"""What HTTP and gRPC have in common: inference through the queue, metadata, load and unload."""

from service.operations.control import authorize, refuse_files
from service.operations.describe import EXTENSIONS, model_metadata, package_version
from service.operations.example import example_request
from service.operations.infer import GONE, WITHDRAW, compute, enqueue, outputs_of
from service.operations.shared import Shared
from service.operations.triton import model_config
from service.operations.turns import Turns
from service.operations.versions import model_version, model_versions

__all__ = [
    "EXTENSIONS",
    "GONE",
    "WITHDRAW",
    "Shared",
    "Turns",
    "authorize",
    "compute",
    "enqueue",
    "example_request",
    "model_config",
    "model_metadata",
    "model_version",
    "model_versions",
    "outputs_of",
    "package_version",
    "refuse_files",
]
