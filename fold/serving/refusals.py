"""Why a version is not served here, though ONNX Runtime opened its graph. Each raises `BnfoldError`."""

import onnxruntime as ort

from fold.artifact import DTYPES, ModelVersion
from fold.errors import BnfoldError
from fold.runtime import ProviderUnavailableError, loaded_cudnn
from fold.serving.placement import Placement


class CertificateError(BnfoldError):
    """The certificate of a version does not hold where it was to be served."""


def refuse_unproven(version: ModelVersion) -> None:
    """Raises `CertificateError`."""
    verdict = version.manifest.verdict
    if verdict.get("equivalent") is not True:
        said = verdict.get("message", "it has no verdict")
        raise CertificateError(
            f"{version.path / 'manifest.json'}: does not certify that the graph is equivalent: {said}; "
            "fold the model again"
        )


def refuse_unknown_datatypes(version: ModelVersion) -> None:
    manifest = version.manifest
    for spec in (*manifest.inputs, *manifest.outputs):
        if spec.datatype not in DTYPES:
            known = ", ".join(DTYPES)
            raise BnfoldError(f"tensor {spec.name!r} is {spec.datatype}, which is not served; expected one of {known}")


def refuse_other_graph(version: ModelVersion, session: ort.InferenceSession) -> None:
    """Requests are checked against the manifest, so it must describe this graph."""
    for kind, specs, nodes in (
        ("inputs", version.manifest.inputs, session.get_inputs()),
        ("outputs", version.manifest.outputs, session.get_outputs()),
    ):
        said = sorted(spec.name for spec in specs)
        has = sorted(node.name for node in nodes)
        if said != has:
            raise BnfoldError(
                f"{version.model_file}: its {kind} are {has}, the manifest says {said}; fold the model again"
            )


def refuse_elsewhere(version: ModelVersion, placement: Placement) -> None:
    """A model with a part on the CPU is slower than all of it there. Raises `ProviderUnavailableError`."""
    if placement.provider == "cuda" and placement.elsewhere:
        raise ProviderUnavailableError(
            f"{version.model_file}: {', '.join(placement.elsewhere)} would compute on the CPU, where this ONNX Runtime "
            "has no CUDA kernel for them; set BNFOLD_ALLOW_CPU_NODES=1, or serve it with --device cpu"
        )


def refuse_without_cudnn(version: ModelVersion, placement: Placement) -> None:
    """After a run. ONNX Runtime loads cuDNN when a convolution first runs on a GPU, and may do without it, many times
    slower. Raises `ProviderUnavailableError`."""
    if placement.keeps_plans and loaded_cudnn() is None:
        raise ProviderUnavailableError(
            f"{version.model_file}: it convolves, and ONNX Runtime found no cuDNN here; install bnfold[gpu], "
            "or serve it with --device cpu"
        )
