"""Runs a graph of a user once in ONNX Runtime, in a process of its own, which only imports numpy and ONNX Runtime.

A file that makes ONNX Runtime crash, take all memory, or run without end then ends that process and not ours.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fold.errors import OUT_OF_MEMORY, BnfoldError, is_out_of_memory
from fold.limits import limit

SETTING = "BNFOLD_MAX_RUN_SECONDS"
"""Environment variable with the most seconds that ONNX Runtime may take to load a graph and run it once."""
SECONDS = 120
"""Without the setting. The largest image networks take one second for two rows, on one core."""
ROWS, FREE = 2, 32
"""Sizes of a free first axis, and of other free axes."""
ANSWER = "\nbnfold: "
"""Before each answer of the process, because ONNX Runtime may print as well."""

Shapes = Mapping[str, Sequence[int | str | None]]


TrialKind = Literal["load", "run"]


class CannotLoadError(BnfoldError):
    """ONNX Runtime says that a file is no model that it can load."""


class Trial:
    """A process that loads a file, and with `run` runs it once, on random inputs of `shapes`, in which only numbers
    count. It begins at once."""

    def __init__(self, path: Path, shapes: Shapes, kind: TrialKind = "run") -> None:
        self._path = path
        self._seconds = limit(SETTING, SECONDS, "seconds")
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        asked = {
            "path": str(path.absolute()),
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "kind": kind,
        }
        with tempfile.TemporaryFile("w+") as stdin:
            json.dump(asked, stdin)
            stdin.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fold.runtime.trial"],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": paths},
            )

    def check(self) -> None:
        """Wait for the end. Raises `BnfoldError` if ONNX Runtime cannot load the file, dies of it, or takes too long.

        A file that cannot be run on random inputs passes, and so does one for which kernels are missing here, if it is
        only loaded. The message does not name the file.
        """
        try:
            printed = self._process.communicate(timeout=self._seconds)[0].decode(errors="replace")
        except subprocess.TimeoutExpired as error:
            raise BnfoldError(
                f"ONNX Runtime needs more than {self._seconds} s to load it and run it once; if it ends at all, "
                f"set {SETTING} to more seconds"
            ) from error
        finally:
            self.close()
        answers = [json.loads(text.partition("\n")[0]) for text in f"\n{printed}".split(ANSWER)[1:]]
        code, last = self._process.returncode, printed.strip().rpartition("\n")[2]
        if code and OUT_OF_MEMORY.search(printed):
            raise BnfoldError(f"the process that runs it once in ONNX Runtime failed: {last}") from MemoryError()
        if code < 0:
            known = {one.value: one.name for one in signal.Signals}
            hint = "; the system may have too little memory for it" if -code == signal.SIGKILL else ""
            raise BnfoldError(
                f"ONNX Runtime dies on it (signal {-code}, {known.get(-code, 'unknown')}) while it "
                f"{'runs' if answers else 'loads'} it{hint}; export it again, with a recent opset"
            )
        if code or not answers:
            raise BnfoldError(f"the process that runs it once in ONNX Runtime failed: {last}")
        for answer in answers:
            if "missing" in answer:
                raise ModuleNotFoundError(answer["missing"], name=answer["missing"])
            if "refused" in answer:
                raise CannotLoadError(answer["refused"])

    def close(self) -> None:
        """End the process, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _main(asked: dict[str, Any]) -> None:
    """The process: answers {} after the file was loaded, and a reason if something is wrong with it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected, and needs no dump

    def answer(**what: str) -> None:
        sys.stdout.write(f"{ANSWER}{json.dumps(what)}\n")
        sys.stdout.flush()

    try:
        import numpy as np  # noqa: PLC0415
        import onnxruntime as ort  # noqa: PLC0415

        from fold.runtime.session import open_session, runtime_reason  # noqa: PLC0415
    except ModuleNotFoundError as error:
        answer(missing=error.name or "onnxruntime")
        return
    ort.set_default_logger_severity(4)
    path = asked["path"]
    try:
        session = open_session(Path(path), provider="cpu")
    except BnfoldError as error:
        if asked["kind"] == "load" and type(error.__cause__).__name__ == "NotImplemented":
            answer()  # a valid graph, for which this build has no kernels
        else:
            answer(refused=str(error).removeprefix(f"{path}: "))
        return
    answer()
    if asked["kind"] == "load":
        return
    random = np.random.default_rng(0)
    inputs = {}
    for one in session.get_inputs():
        sizes = asked["shapes"].get(one.name) or one.shape
        shape = [n if isinstance(n, int) and n >= 0 else FREE if axis else ROWS for axis, n in enumerate(sizes)]
        dtype = _TYPES.get(one.type)
        if dtype is None:
            return  # nothing can be drawn, so the proof will not run it either
        floats = np.issubdtype(dtype, np.floating)
        inputs[one.name] = (random.standard_normal(shape) if floats else random.integers(0, 2, shape)).astype(dtype)
    try:
        session.run(None, inputs)
    except Exception as error:  # ONNX Runtime's exceptions share no base; the proof tries other sizes and says why
        if is_out_of_memory(error):
            answer(refused=f"ONNX Runtime cannot run it once: {runtime_reason(error)}")


_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    **{f"tensor({name})": name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}  # fmt: skip

if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        _main(json.load(sys.stdin))
