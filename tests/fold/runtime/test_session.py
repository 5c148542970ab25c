"""ONNX Runtime is imported as we want it, whichever module of ours does it first."""

import os
import subprocess
import sys

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from fold.errors import BnfoldError
from fold.runtime.session import runtime_code, runtime_reason, without_runtime_words

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
