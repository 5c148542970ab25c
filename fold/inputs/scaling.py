"""Input scaling, which `--normalize` asks for: `v = (x*scale - mean) / std` for each channel.

It becomes part of the model: a Cast of bytes, a product and a sum with constants, `v = s*x + t` with `s = scale/std`
and `t = -mean/std`. The two constants have fixed names. By these the engine (fold.engine) tells them from a BatchNorm,
and it may remove either of the two without the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fold.artifact import Preprocessing
from fold.errors import BnfoldError
from fold.inputs.images import read_preprocessing

AxisOrder = Literal["nchw", "nhwc"]

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
"""How axes are transposed from one layout to the other."""
KEYS = ("scale", "mean", "std")
EXAMPLE = "mean=0.485,0.456,0.406,std=0.229,0.224,0.225,scale=1/255"
ALREADY = "--normalize: the model already scales an input and takes its bytes; leave the option out"
AGREE = 1e-6
"""Relative difference up to which two written numbers, such as 0.0039216 and 1/255, count as the same."""


class Numbers(NamedTuple):
    """The numbers of an input scaling. `mean` and `std` have one number for each channel, or one for all."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, how: Preprocessing) -> "Numbers":
        return cls(how.scale, how.mean, how.std)

    @property
    def map(self) -> tuple[np.ndarray, np.ndarray]:
        """s and t in float64, both of shape [channels] or [1]."""
        mean, std = np.broadcast_arrays(np.array(self.mean, float), np.array(self.std, float))
        return self.scale / std, -mean / std + 0.0  # no negative zero

    def agrees(self, other: "Numbers") -> bool:
        """Whether both map the pixels 0 to 255 to the same values, up to rounding of the written numbers."""
        (s, t), (s_other, t_other) = self.map, other.map
        far = np.maximum(np.abs(255 * s), np.abs(t))
        return bool((255 * np.abs(s - s_other) <= AGREE * far).all() and (np.abs(t - t_other) <= AGREE * far).all())


RAW = Numbers(scale=1.0)
"""Pixels are not scaled."""


@dataclass(frozen=True)
class InputScaling:
    """The scaling that was asked for.

    `input` is a name, or None for the only input of floats. `numbers` is None where the preprocessing gives them, from
    the file `preprocessing` or from the checkpoint. `layout` is the axis order of the bytes that clients send, None for
    that of the model.
    """

    input: str | None = None
    numbers: Numbers | None = None
    layout: AxisOrder | None = None
    preprocessing: Path | None = None

    def resolve(self, metadata: dict[str, Any], names: Sequence[str]) -> "ResolvedScaling":
        """The scaling of one input. `names` are the inputs of floats; raises `BnfoldError` if none of them is meant."""
        numbers, name = self.numbers, self.input
        if numbers is None:
            how = read_preprocessing(self.preprocessing, metadata, names)
            if how is None:
                raise BnfoldError(
                    "--normalize preprocessing: neither --preprocessing nor the checkpoint describes any; "
                    f"give the numbers, such as {EXAMPLE}"
                )
            numbers, name = Numbers.of(how), how.input
        if name is None and len(names) != 1:
            found = f"several inputs of floats, {', '.join(names)}" if names else "no input of floats"
            raise BnfoldError(f"--normalize: the model has {found}; name one of them, such as NAME:{EXAMPLE}")
        if name is not None and name not in names:
            raise BnfoldError(f"--normalize: the model has no input {name!r} of floats; it has {', '.join(names)}")
        return ResolvedScaling(name or names[0], numbers, self.layout)


@dataclass(frozen=True)
class ResolvedScaling:
    """The scaling that the request came to: one input, its numbers, and the axis order of the bytes."""

    input: str
    numbers: Numbers
    layout: AxisOrder | None

    def constants(self, sizes: Sequence[int | None], native: AxisOrder = "nchw") -> tuple[np.ndarray, np.ndarray]:
        """s and t in float64, of the rank of the input, with extent 1 on every axis except the channels.

        `sizes` are the dimensions of the input in the order `native`, None where they are free. Raises `BnfoldError`
        if they do not fit the numbers or the layout.
        """
        if len(sizes) < 2:
            raise BnfoldError(f"--normalize: input {self.input!r} has {len(sizes)} axes; expected a batch and channels")
        if self.layout is not None and len(sizes) != 4:
            raise BnfoldError(
                f"--layout {self.layout}: input {self.input!r} has {len(sizes)} axes; expected four, those of images"
            )
        axis = 3 if native == "nhwc" else 1
        s, t = self.numbers.map
        channels = sizes[axis]
        if len(s) > 1 and len(s) != channels:
            raise BnfoldError(
                f"--normalize: {len(s)} numbers for a channel each, but input {self.input!r} has "
                f"{'an unknown number of' if channels is None else channels} channels"
            )
        shape = [1] * len(sizes)
        shape[axis] = channels or 1
        return tuple(np.broadcast_to(array, shape[axis]).reshape(shape) for array in (s, t))  # type: ignore[return-value]

    def permutation(self, native: AxisOrder = "nchw") -> tuple[int, ...] | None:
        """The transposition from the layout of the bytes to the layout of the model; None if both are the same."""
        if self.layout in (None, native):
            return None
        return TO_NCHW if self.layout == "nhwc" else TO_NHWC

    def as_sent(self, sizes: Sequence[Any], native: AxisOrder = "nchw") -> list[Any]:
        """The sizes of a tensor, the batch first, in the layout of the bytes that clients send."""
        permutation = self.permutation(native)
        return list(sizes) if permutation is None else [sizes[permutation.index(axis)] for axis in range(len(sizes))]

    def to_dict(self) -> dict[str, Any]:
        """The entry `normalize` under `source` in a manifest."""
        return {"input": self.input, **self.numbers._asdict(), "layout": self.layout}


def unscaled(how: Preprocessing, resolved: ResolvedScaling) -> Preprocessing:
    """The preprocessing of images for an input that the graph scales: it only decodes and resizes, and keeps the bytes.

    Raises `BnfoldError` if its own scaling differs from that of the graph.
    """
    if how.model_fields_set.intersection(KEYS) and not any(
        Numbers.of(how).agrees(numbers) for numbers in (resolved.numbers, RAW)
    ):
        raise BnfoldError(
            f"--normalize: {_shown(resolved.numbers)} contradicts the preprocessing, {_shown(Numbers.of(how))}; "
            "leave one of them out, or use --normalize preprocessing"
        )
    return how.model_copy(update={**RAW._asdict(), "layout": resolved.layout or "nchw"})


def parse_scaling(text: str, layout: AxisOrder | None = None, preprocessing: Path | None = None) -> InputScaling:
    """`mean=0.5,0.4,0.3,std=0.2,scale=1/255`, with `NAME:` in front or brackets around a list; or `preprocessing`.

    Defaults are those of a preprocessing: scale 1/255, mean 0, std 1. Raises `BnfoldError`.
    """
    if text.strip() == "preprocessing":
        return InputScaling(layout=layout, preprocessing=preprocessing)
    name, given = _keys(text)
    numbers = Numbers(**{key: values if key != "scale" else values[0] for key, values in given.items()})  # type: ignore[arg-type]
    lengths = {len(values) for values in (numbers.mean, numbers.std)} - {1}
    if len(lengths) > 1 or len(given.get("scale", (1,))) > 1:
        raise _error(text, "mean and std are lists of one length, or one number, and scale is one number")
    if numbers.scale <= 0 or min(numbers.std) <= 0:
        raise _error(text, "scale and std are larger than 0")
    if "scale" not in given and max(map(abs, numbers.mean)) > 1:
        raise _error(text, "mean is larger than any pixel with scale=1/255; give the scale that belongs to it")
    return InputScaling(name, numbers, layout)


def _keys(text: str) -> tuple[str | None, dict[str, tuple[float, ...]]]:
    """The name before the colon, if there is one, and the numbers by key."""
    head, equals, rest = text.partition("=")
    name, colon, key = head.rpartition(":")
    given: dict[str, tuple[float, ...]] = {}
    for part in f"{key}{equals}{rest}".replace("[", "").replace("]", "").split(","):
        label, equals, number = part.rpartition("=")
        if equals:
            key = label.strip()
            if key not in KEYS or key in given:
                raise _error(text, f"{key!r} is {'given twice' if key in given else 'not a key'}")
            given[key] = ()
        if key not in given:
            raise _error(text, f"{part!r} has no key before it")
        given[key] += (_number(text, number),)
    return (name if colon else None), given


def _number(text: str, written: str) -> float:
    """A decimal, or a quotient of two."""
    over, quotient, under = written.partition("/")
    try:
        value = float(over) / float(under) if quotient else float(over)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise _error(text, f"{written.strip()!r} is not a number")
    return value


def _error(text: str, what: str) -> BnfoldError:
    return BnfoldError(f"--normalize {text}: {what}; expected for example {EXAMPLE}, or preprocessing")


def _shown(numbers: Numbers) -> str:
    mean, std = (",".join(f"{number:.6g}" for number in values) for values in (numbers.mean, numbers.std))
    return f"mean={mean},std={std},scale={numbers.scale:.6g}"
