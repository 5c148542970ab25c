"""What HTTP and gRPC have in common: inference through the queue, metadata, load and unload."""

from service.operations.control import authorize, refuse_files
from service.operations.describe import EXTENSIONS, model_metadata, package_version
from service.operations.infer import GONE, WITHDRAW, compute, enqueue, outputs_of
from service.operations.triton import model_config
from service.operations.turns import Turns

__all__ = [
    "EXTENSIONS",
    "GONE",
    "WITHDRAW",
    "Turns",
    "authorize",
    "compute",
    "enqueue",
    "model_config",
    "model_metadata",
    "outputs_of",
    "package_version",
    "refuse_files",
]
