"""`manifest.json`, which describes one version of a model, and the datatypes of its tensors."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

import ml_dtypes
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
"""The datatypes of the Open Inference Protocol that numpy has, by name."""
DTYPES: dict[str, np.dtype[Any]] = {
    **DATATYPES,
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(np.object_),
}
"""All of its datatypes. BF16 is `ml_dtypes`' type, as in the protocol's own client. BYTES are strings: ONNX has no
other, and ONNX Runtime takes and gives them as Python's in arrays of objects."""

PrecisionName = Literal["fp32", "tf32", "fp16", "bf16"]
"""The type in which a graph computes. `tf32` is stored in float32; a GPU rounds the factors of products to 11 bits."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Strict):
    """A graph input or output. `shape` has -1 for a free dimension; the batch, if there is one, is first."""

    name: str
    datatype: str
    shape: tuple[Annotated[int, Field(ge=-1)], ...]


class Preprocessing(_Strict):
    """How an image becomes the tensor `input`: decode to `mode`, resize to `height` by `width` (bilinear), then
    `(pixel * scale - mean) / std` for each channel, in the axis order `layout`. Pixels are 0 to 255.

    With `resize` and `crop`, the shorter edge is resized to `resize` first, and `height` by `width` is cropped from the
    centre.
    """

    input: str
    mode: Literal["L", "RGB"]
    height: Annotated[int, Field(gt=0, le=8192)]
    width: Annotated[int, Field(gt=0, le=8192)]
    resize: Annotated[int, Field(gt=0, le=8192)] | None = None
    crop: Literal["center"] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"

    @property
    def channels(self) -> int:
        return 1 if self.mode == "L" else 3

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.resize is None) != (self.crop is None):
            raise PydanticCustomError("resize_and_crop", "resize and crop belong together")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise PydanticCustomError("resize_and_crop", "resize is smaller than what is to be cut out of the image")
        if {len(self.mean), len(self.std)} - {1, self.channels}:
            raise PydanticCustomError("channels", "mean and std have one number, or one for each channel of mode")
        return self


def all_batched(specs: Iterable[TensorSpec]) -> bool:
    """Whether the first axis of all these tensors is the free batch axis."""
    return all(len(spec.shape) > 0 and spec.shape[0] == -1 for spec in specs)


# What is read of the dictionaries in a manifest. Any key may be missing, because older versions wrote fewer, and there
# may be others.


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Source(_Part):
    overridable: list[str] = []
    sha256: str = ""


class _KeptFloat32(_Part):
    layer: str
    tensor: str
    reason: str


class _Precision(_Part):
    type: PrecisionName = "fp32"
    kept_float32: list[_KeptFloat32] = []


class _BatchNorm(_Part):
    name: str = ""
    reason: str = ""


class _Fold(_Part):
    batchnorms: int = 0
    folded: list[_BatchNorm] = []
    kept: list[_BatchNorm] = []
    open_activations: bool = False
    precision: _Precision = _Precision()


class _Output(_Part):
    name: str
    equivalent: bool = True
    limit: float | None = None


class _Decisions(_Part):
    flips: int = 0
    excused: int = 0


class _Held(_Part):
    holds: bool


class _Verdict(_Part):
    equivalent: bool = False
    message: str = ""
    outputs: list[_Output] = []
    decisions: list[_Decisions] = []
    algebra: _Held | None = None
    rounding: _Held | None = None


def _checked(part: type[_Part]) -> AfterValidator:
    """Keeps the dictionary as it was written, since the digest is that of what was written."""

    def check(written: dict[str, Any]) -> dict[str, Any]:
        try:
            part.model_validate(written)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise PydanticCustomError("part", "{text}", {"text": f"{where}: {first['msg']}"}) from error
        return written

    return AfterValidator(check)


class Manifest(_Strict):
    """The content of `manifest.json`: one version of a model. `free_sizes` are the sizes that inputs are drawn with in
    place of free dimensions behind the batch (`fold.inputs`)."""

    format: Literal[1] = 1
    name: str
    version: str
    created: str
    source: Annotated[dict[str, Any], _checked(_Source)]
    reference: Literal["reference.pt2", "unfolded.onnx"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    free_sizes: tuple[int, ...] | None = None
    fold: Annotated[dict[str, Any], _checked(_Fold)]
    verdict: Annotated[dict[str, Any], _checked(_Verdict)]
    versions: dict[str, str]
    files: dict[str, str] = {}
    digest: str = ""

    @property
    def required_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that have no stored value which a caller may override."""
        optional = self.source.get("overridable", ())
        return tuple(spec for spec in self.inputs if spec.name not in optional)

    @property
    def precision(self) -> PrecisionName:
        """The type in which the graph computes: float32 for a manifest from before there was a choice."""
        precision: PrecisionName = self.fold.get("precision", {}).get("type", "fp32")
        return precision

    def precision_on(self, provider: str) -> PrecisionName:
        """The type in which the graph computes on `cpu` or `cuda`: a CPU has no TF32 and computes in fp32 instead."""
        return "fp32" if self.precision == "tf32" and provider == "cpu" else self.precision

    @property
    def tf32(self) -> bool:
        """Whether a GPU computes it with TF32 on. In 16 bits as well, where layers may have stayed in float32: without
        TF32 ONNX Runtime takes no tensor cores for any type."""
        return self.precision != "fp32"

    @property
    def batched(self) -> bool:
        """Whether the first axis of every input and output is the free batch axis."""
        return all_batched((*self.inputs, *self.outputs))
