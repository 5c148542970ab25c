"""The model directory: its files, written whole or not at all, and checked when they are read."""

from fold.artifact.canary import CANARY_FILE, check_canary, write_canary
from fold.artifact.directory import (
    ModelVersion,
    new_version,
    next_version,
    read_version,
    refuse_version,
    remove_abandoned,
    sha256,
    sync,
    write_manifest,
)
from fold.artifact.files import (
    NAME_PATTERN,
    NAMES,
    Listing,
    check_file,
    is_published,
    model_folders,
    open_file,
    published_models,
    repository_of,
    version_folder,
    version_folders,
    version_numbers,
)
from fold.artifact.manifest import DATATYPES, DTYPES, Manifest, PrecisionName, Preprocessing, TensorSpec, all_batched
from fold.artifact.specs import tensor_specs
from fold.artifact.triton import powers_of_two, triton_tensors, write_triton_config

__all__ = [
    "CANARY_FILE",
    "DATATYPES",
    "DTYPES",
    "NAMES",
    "NAME_PATTERN",
    "Listing",
    "Manifest",
    "ModelVersion",
    "PrecisionName",
    "Preprocessing",
    "TensorSpec",
    "all_batched",
    "check_canary",
    "check_file",
    "is_published",
    "model_folders",
    "new_version",
    "next_version",
    "open_file",
    "powers_of_two",
    "published_models",
    "read_version",
    "refuse_version",
    "remove_abandoned",
    "repository_of",
    "sha256",
    "sync",
    "tensor_specs",
    "triton_tensors",
    "version_folder",
    "version_folders",
    "version_numbers",
    "write_canary",
    "write_manifest",
    "write_triton_config",
]
