"""One version of a model, opened in ONNX Runtime: what the batches run through, and the proof as well.

The very same session serves and is proven; nothing is opened a second time for the certificate.
"""

import time

import numpy as np
import onnxruntime as ort

from fold.artifact import ModelVersion
from fold.canary import FILE, sing
from fold.errors import BnfoldError, first_line
from fold.runtime import Provider, open_session, provider_of
from service.bfloat16 import run_with_bfloat16
from service.datatypes import DTYPES
from service.signature import Arrays, Signature

SHORT_SECONDS = 0.001
LONG_SECONDS = 0.05
"""A run that takes so long is no short one's first, and need not be tried again before the service is ready."""
TRIALS = 3


class CertificateError(BnfoldError):
    """The certificate of a version does not hold where it was to be served."""


class ModelSession:
    def __init__(self, session: ort.InferenceSession, version: ModelVersion) -> None:
        self.version = version
        self._refuse_unknown_datatypes()
        self.signature = Signature.of(version.manifest)
        self._session = session
        self._outputs = [spec.name for spec in version.manifest.outputs]
        specs = (*version.manifest.inputs, *version.manifest.outputs)
        self._has_bfloat16 = any(spec.datatype == "BF16" for spec in specs)
        self.provider = provider_of(session)
        self._refuse_other_graph()

    @classmethod
    def open(cls, version: ModelVersion, *, provider: Provider, threads: int, spinning: bool) -> "ModelSession":
        """Raises `BnfoldError` if ONNX Runtime cannot load the graph, or not on this provider.

        With `threads` 0 a model whose run on one row takes no longer than `SHORT_SECONDS` gets one thread, for to wake
        others takes longer than they save; any other model gets as many as ONNX Runtime likes.
        """
        opened = cls(open_session(version.model_file, provider=provider, threads=threads, spinning=spinning), version)
        if threads or opened.provider != "cpu" or not opened._is_short():
            return opened
        return cls(open_session(version.model_file, provider=provider, threads=1), version)

    def run(self, inputs: Arrays) -> Arrays:
        """One run; several threads may call it. Outputs by name."""
        # A binary tensor begins where the JSON before it happened to end, and kernels may load aligned.
        feeds = {name: a if a.flags.aligned else a.copy() for name, a in inputs.items()}
        if self._has_bfloat16:
            return dict(zip(self._outputs, run_with_bfloat16(self._session, self._outputs, feeds), strict=True))
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))

    def warm_up(self) -> None:
        """Run once on zeros, so that no request pays for what the first run sets up.

        Where a dimension beside the batch is free, no size is known to be valid: there the first request is the first.
        """
        row = self._blank_row()
        if row is not None:
            self._attempt(row)

    def _blank_row(self) -> Arrays | None:
        specs = self.version.manifest.inputs
        batch = 1 if self.signature.batched else 0
        if any(-1 in spec.shape[batch:] for spec in specs):
            return None
        shapes = {spec.name: [1] * batch + list(spec.shape[batch:]) for spec in specs}
        return {spec.name: _blank(shapes[spec.name], spec.datatype) for spec in specs}

    def _is_short(self) -> bool:
        row = self._blank_row()
        if row is None:
            return False
        for _ in range(TRIALS):  # the first takes longer
            began = time.perf_counter()
            self._attempt(row)
            seconds = time.perf_counter() - began
            if seconds <= SHORT_SECONDS or seconds > LONG_SECONDS:
                return seconds <= SHORT_SECONDS
        return False

    @property
    def has_canary(self) -> bool:
        """Versions that were published before there were canaries have none."""
        return FILE in self.version.manifest.files

    def try_canary(self) -> None:
        """Raises `CertificateError` if this session, with its device and options, does not compute what was proven."""
        failure = sing(self.version.path, self._attempt) if self.has_canary else None
        if failure is not None:
            raise CertificateError(
                f"{self.version.model_file}: its certificate does not hold here, on {self.provider}: {failure}; "
                "compare with bnfold verify, and fold the model again"
            )

    def _attempt(self, inputs: Arrays) -> Arrays:
        try:
            return self.run(inputs)
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise BnfoldError(
                f"{self.version.model_file}: a run before serving fails: {first_line(error)}; fold the model again"
            ) from error

    def _refuse_unknown_datatypes(self) -> None:
        manifest = self.version.manifest
        for spec in (*manifest.inputs, *manifest.outputs):
            if spec.datatype not in DTYPES:
                known = ", ".join(DTYPES)
                raise BnfoldError(
                    f"tensor {spec.name!r} is {spec.datatype}, which is not served; expected one of {known}"
                )

    def _refuse_other_graph(self) -> None:
        """The manifest is what requests are checked against, so it must tell of this graph."""
        manifest = self.version.manifest
        for kind, specs, nodes in (
            ("inputs", manifest.inputs, self._session.get_inputs()),
            ("outputs", manifest.outputs, self._session.get_outputs()),
        ):
            said = sorted(spec.name for spec in specs)
            has = sorted(node.name for node in nodes)
            if said != has:
                raise BnfoldError(
                    f"{self.version.model_file}: its {kind} are {has}, the manifest says {said}; fold the model again"
                )


def _blank(shape: list[int], datatype: str) -> np.ndarray:
    return np.full(shape, "", np.object_) if datatype == "BYTES" else np.zeros(shape, DTYPES[datatype])
