"""Triton's ModelConfig of a version, as it serves here with this service's settings.

The tensors are described by the function that also writes `config.pbtxt`. Field names are those of the protobuf
message, so that protobuf's parser can read the JSON.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

from fold.artifact import triton_tensors
from service.repository import Model, VersionPolicy
from service.settings import Settings


def model_config(model: Model, settings: Settings) -> dict[str, Any]:
    session = model.session
    kind = "KIND_GPU" if session.provider == "cuda" else "KIND_CPU"
    config = {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": _policy(VersionPolicy.of(settings.version_policy)),
        "max_batch_size": settings.max_batch_size if model.signature.batched else 0,
        **triton_tensors(model.manifest),
        "instance_group": [
            {
                "name": f"{model.name}_0",
                "kind": kind,
                "count": session.single_core_runs or session.batches_in_flight,
                "gpus": [session.placement.device] if kind == "KIND_GPU" else [],
            }
        ],
        "default_model_filename": session.version.model_file.name,
        "parameters": {"precision": {"string_value": model.manifest.precision}, **session.placement.parameters()},
        "model_warmup": [{"name": f"{size} rows", "batch_size": size, "count": 1} for size in session.bucket_sizes],
    }
    if model.signature.batched:
        config["dynamic_batching"] = _batching(settings, session.bucket_sizes)
    return config


def _policy(policy: VersionPolicy) -> dict[str, Any]:
    if policy.given is not None:
        return {"specific": {"versions": sorted(policy.given)}}
    return {"all": {}} if policy.at_most == inf else {"latest": {"num_versions": policy.at_most}}


def _batching(settings: Settings, sizes: Sequence[int]) -> dict[str, Any]:
    """Without `sizes` no size is preferred: the next batch is whatever is in the queue."""
    return {
        "preferred_batch_size": list(sizes),
        "max_queue_delay_microseconds": round(settings.max_queue_delay_seconds * 1e6),
        "preserve_ordering": False,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": round(settings.timeout_seconds * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": settings.queue_rows,
        },
    }
