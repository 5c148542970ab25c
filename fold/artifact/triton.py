"""Triton's model configuration: `config.pbtxt` in the folder of the model, and the tensors that it lists."""

import os
from math import prod
from pathlib import Path
from typing import Any

from fold.artifact.directory import INCOMING, alone_in
from fold.artifact.manifest import Manifest, TensorSpec


def powers_of_two(most: int) -> tuple[int, ...]:
    """Batch sizes: the powers of two below `most`, and `most` itself."""
    return (*(1 << power for power in range(most.bit_length()) if 1 << power < most), most)


def triton_tensors(manifest: Manifest) -> dict[str, list[dict[str, Any]]]:
    """`input` and `output` of Triton's ModelConfig; `dims` leave out the batch axis. Where nothing else is left they
    are [1] with a `reshape`, because Triton and its tools take no empty `dims`.

    An output with as many values as there are labels gets a `label_filename`, relative to the folder of the model.
    """

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
        dims = list(spec.shape[1:] if manifest.batched else spec.shape)
        described = {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": dims or [1]}
        return described if dims else described | {"reshape": {"shape": []}}

    outputs = [tensor(spec) for spec in manifest.outputs]
    for output in outputs:
        if manifest.labels and prod(output["dims"]) == len(manifest.labels):
            output["label_filename"] = f"{manifest.version}/labels.txt"
    return {"input": [tensor(spec) for spec in manifest.inputs], "output": outputs}


def write_triton_config(model: Path, manifest: Manifest, max_batch_size: int = 64) -> None:
    """Write `config.pbtxt` into the folder of the model, so that Triton can serve the same repository.

    It prefers batches of a power of two, so that cuDNN and cuBLAS see few shapes, and turns TF32 on only if that is the
    precision of the manifest, which the proof holds for.
    """
    from google.protobuf.text_encoding import CEscape  # noqa: PLC0415  # a service without gRPC needs no protobuf

    def entry(tensor: dict[str, Any]) -> str:
        dims = ", ".join(map(str, tensor["dims"]))
        shape = f"dims: [ {dims} ]" + (" reshape: { shape: [ ] }" if "reshape" in tensor else "")
        labels = f' label_filename: "{tensor["label_filename"]}"' if "label_filename" in tensor else ""
        name = CEscape(tensor["name"], as_utf8=tensor["name"].isprintable())
        return f'  {{ name: "{name}" data_type: {tensor["data_type"]} {shape}{labels} }}'

    text = f'name: "{manifest.name}"\nplatform: "onnxruntime_onnx"\n'
    text += f"max_batch_size: {max_batch_size if manifest.batched else 0}\n"
    for kind, tensors in triton_tensors(manifest).items():
        text += f"{kind} [\n" + ",\n".join(map(entry, tensors)) + "\n]\n"
    if manifest.batched:
        sizes = ", ".join(map(str, powers_of_two(max_batch_size)))
        text += f"dynamic_batching {{ preferred_batch_size: [ {sizes} ] }}\n"
    text += (
        "optimization { execution_accelerators { gpu_execution_accelerator: [\n"
        f'  {{ name: "cuda" parameters {{ key: "use_tf32" value: "{int(manifest.tf32)}" }} }}\n] }} }}\n'
    )
    text += "version_policy { latest { num_versions: 1 } }\n"
    partial = model / f"{INCOMING}{os.getpid()}-config.pbtxt"
    with alone_in(model):
        try:
            partial.write_text(text, encoding="utf-8")
            partial.rename(model / "config.pbtxt")
        finally:
            partial.unlink(missing_ok=True)
