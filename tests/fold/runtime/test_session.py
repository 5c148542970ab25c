"""ONNX Runtime is imported as we want it, whichever module of ours does it first."""

import os
import subprocess
import sys

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
