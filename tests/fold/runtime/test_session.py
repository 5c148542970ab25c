"""ONNX Runtime is imported as we want it, whichever module of ours does it first."""

import os
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from fold.errors import BnfoldError
from fold.runtime.session import open_graph, run, runtime_code, runtime_reason, without_runtime_words

CODE = """
import os, sys

class Telemetry:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Telemetry())
import service.app
"""


def test_telemetry_is_off_when_onnxruntime_is_imported() -> None:
    """The service imports `fold.runtime.devices` before it opens a session."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


GATHER = (
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running Gather node. "
    "Status Message: /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/gather.cc:84 indices element out of bounds"
)
CUDA = (
    "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=pod-7 ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc ; line=123 ; expr=cudaMemcpy"
)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (GATHER, "INVALID_ARGUMENT"),
        (CUDA, "CUDA failure 700"),
        (f"[ONNXRuntimeError] : 1 : FAIL : {CUDA}", "FAIL, CUDA failure 700"),
        ("tensor.cc:12 shape.Size() must be >= 0", "InvalidArgument"),
    ],
)
def test_the_runtimes_words_are_taken_out_of_our_sentence(words: str, code: str) -> None:
    said = InvalidArgument(words)
    assert runtime_code(said) == without_runtime_words(said) == code
    error = BnfoldError(f"m.onnx: cannot be loaded: {words}; fold it again")
    error.__cause__ = said
    assert without_runtime_words(error) == f"m.onnx: cannot be loaded: {code}; fold it again"


def test_what_the_device_said_is_told_without_the_host_and_positions() -> None:
    assert runtime_reason(
        RuntimeError(f"/onnxruntime_src/cuda_call.cc:129 onnxruntime::CudaCall(int) [with T=int] {CUDA}")
    ) == ("CUDA failure 700: an illegal memory access was encountered")
    assert runtime_reason(RuntimeError(GATHER)).startswith("Non-zero status code returned while running Gather node. ")


def test_a_sentence_of_our_own_stays_as_it_is() -> None:
    assert without_runtime_words(BnfoldError("m.onnx: changed")) == "m.onnx: changed"


@pytest.mark.parametrize(
    "stored", [np.arange(1000, dtype=np.float32), np.array([f"label {n}" for n in range(100)], object)]
)
def test_a_graph_in_memory_is_opened_with_weights_of_any_type(stored: np.ndarray) -> None:
    """Numbers are in a file beside the graph, and texts in the graph."""
    texts = [str(text).encode() for text in stored] if stored.dtype == object else None
    shape = ir.Shape(stored.shape)
    tensor = ir.tensor(stored) if texts is None else ir.StringTensor(texts, shape=shape)
    weight = ir.Value(name="w", const_value=tensor, shape=shape, type=ir.TensorType(tensor.dtype))
    node = ir.node("Identity", [weight], num_outputs=1)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", weight.type, shape
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 18}, name="g")
    np.testing.assert_array_equal(run(open_graph(ir.Model(graph, ir_version=10)), {})["y"], stored)
    assert weight.const_value is tensor
