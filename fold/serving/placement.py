"""The device that a session runs on, and its options, as ONNX Runtime reports them; settings may say otherwise."""

from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from fold.artifact import Manifest
from fold.runtime import PROVIDERS, computed_elsewhere, loaded_cudnn, placement, provider_of

OPTIONS = {
    "tf32": "use_tf32",
    "conv_search": "cudnn_conv_algo_search",
    "cuda_graphs": "enable_cuda_graph",
    "nhwc": "prefer_nhwc",
}
"""Options of the CUDA provider, by their label in metrics."""
FACTS = ("device", "precision", "cudnn", *OPTIONS)
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv"})
"""Operators that cuDNN computes on a GPU, with a plan for one shape of their input."""


@dataclass(frozen=True)
class Placement:
    """`nodes` counts the nodes on each provider, by ONNX Runtime's name; `elsewhere` are operator types that compute
    on another provider than `provider`, of which `options` are. `device` is the GPU's number, 0 on the CPU. With
    `convolves`, some nodes are convolutions."""

    provider: str
    device: int
    nodes: dict[str, int]
    elsewhere: tuple[str, ...]
    options: dict[str, str]
    convolves: bool = False

    @classmethod
    def of(cls, session: ort.InferenceSession) -> "Placement":
        """Of a session that was opened with `record_placement`."""
        provider = provider_of(session)
        options = session.get_provider_options().get(PROVIDERS.get(provider, provider), {})
        types = placement(session)
        return cls(
            provider,
            int(options.get("device_id", 0)),
            {name: len(found) for name, found in types.items()},
            tuple(computed_elsewhere(session)),
            dict(options),
            not CONVOLUTIONS.isdisjoint(op_type for found in types.values() for op_type in found),
        )

    @property
    def gpu(self) -> int | None:
        """The GPU's number; None on the CPU."""
        return self.device if self.provider == "cuda" else None

    @property
    def keeps_plans(self) -> bool:
        """Whether a run is slow if its shapes are not those of the run before: on a GPU ONNX Runtime's convolutions
        keep the cuDNN plan of their last shape."""
        return self.provider == "cuda" and self.convolves

    @property
    def name(self) -> str:
        """As the setting names a device: `cpu`, or `cuda:0` and so on."""
        return f"cuda:{self.device}" if self.provider == "cuda" else self.provider

    def facts(self, manifest: Manifest) -> dict[str, str]:
        """`FACTS` with their values, for metrics; empty where the provider has no such option."""
        options = {label: self.options.get(name, "") for label, name in OPTIONS.items()}
        cudnn = (loaded_cudnn() or "not loaded") if self.provider == "cuda" else ""
        return {"device": self.name, "precision": manifest.precision_on(self.provider), "cudnn": cudnn, **options}

    def parameters(self) -> dict[str, Any]:
        """For `parameters` of Triton's ModelConfig, whose values are strings."""
        found = {f"nodes.{name}": str(count) for name, count in sorted(self.nodes.items())}
        found |= {f"{self.provider}.{name}": value for name, value in sorted(self.options.items())}
        if self.provider == "cuda":
            found["cudnn"] = loaded_cudnn() or "not loaded"
        return {name: {"string_value": value} for name, value in found.items()}
