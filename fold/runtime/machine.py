"""Where something was made or measured: the processor, the graphics card, and the versions of the tools."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fold.runtime.cpus import cores
from fold.runtime.devices import gpu_name

TOOLS = ("bnfold", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class Machine:
    """`cores` are those that this process may use; `gpu` is None where none took part or the driver gives no name."""

    cpu: str
    cores: int
    gpu: str | None
    system: str


def this_machine(*, gpu: bool) -> Machine:
    """The machine that this process runs on, with its first GPU if one took part."""
    return Machine(_cpu_name(), cores(), gpu_name() if gpu else None, platform.platform())


def tool_versions() -> dict[str, str]:
    """Versions of Python and of the installed tools, by name."""
    found = {"python": platform.python_version()}
    for tool in TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    """The model's name; the architecture's where the system does not tell, as Linux on ARM."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
