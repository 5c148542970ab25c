"""Rules that find suspicious BatchNorms, the worst first.

A rule looks at one BatchNorm and returns a sentence about it, or None. A suspicion proves nothing: a suspicious model
may be right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fold.engine import Code
from fold.precision import FORMATS

if TYPE_CHECKING:
    from fold.inspection.batchnorm import BatchNorm

INITIAL_SHARE = 0.01
"""The share of the initial mean 0 and variance 1 above which statistics come from few batches: fewer than about 43 at a
momentum of 0.1."""
DEAD_SHARE = 0.1
LARGE_SCALE = 1e3
LOST_SHARE = 0.5
"""The share of numbers lost in float16 that is suspicious; above it fold.precision leaves a layer in float32."""


@dataclass(frozen=True)
class Suspicion:
    """One kind of finding: a stable `code`, the name of the first BatchNorm with it, the sentence about that one, and
    the names of the others with it."""

    code: str
    name: str
    text: str
    also: tuple[str, ...] = ()


def suspicions(found: Sequence["BatchNorm"]) -> tuple[Suspicion, ...]:
    """The suspicions of all rules, the worst kind first. `found` is in graph order."""
    result = []
    for code, rule in RULES.items():
        texts = [(one.name, text) for one in found if (text := rule(one)) is not None]
        if texts:
            (name, text), *others = texts
            result.append(Suspicion(code, name, text, tuple(other for other, _ in others)))
    return tuple(result)


def _not_finite(one: "BatchNorm") -> str | None:
    if not one.statistics.not_finite:
        return None
    return f"its parameters or statistics are not finite in {_channels(one.statistics.not_finite, one)}"


def _negative_variance(one: "BatchNorm") -> str | None:
    count, variance = one.statistics.negative_variance, one.statistics.variance
    if not count or variance is None:
        return None
    return f"its variance is negative in {_channels(count, one)}, down to {variance.min:.3g}"


def _training_mode(one: "BatchNorm") -> str | None:
    if not one.statistics.training_mode:
        return None
    return "it is in training mode: it normalises by the batch, and its statistics are not used"


def _never_trained(one: "BatchNorm") -> str | None:
    if not one.statistics.initial:
        return None
    seen = one.statistics.batches_seen
    counted = f", though training counted {_counted(seen)}" if seen else ""
    return f"never trained: its statistics are still mean 0, variance 1{counted}"


def _few_batches(one: "BatchNorm") -> str | None:
    """A variance below the share that the initial 1 still has shows that the statistics are no such moving average."""
    seen, share, variance = one.statistics.batches_seen, one.statistics.initial_share, one.statistics.variance
    if not seen or share is None or share <= INITIAL_SHARE or one.statistics.initial:
        return None
    if variance is None or variance.min < share:
        return None
    return f"its statistics are of {_counted(seen)}: the initial mean 0, variance 1 still weighs {share:.0%}"


def _not_counted(one: "BatchNorm") -> str | None:
    if one.statistics.batches_seen != 0 or one.statistics.initial or one.statistics.mean is None:
        return None
    return "training counted no batch (num_batches_tracked is 0), yet its statistics are not the initial ones"


def _dead_channels(one: "BatchNorm") -> str | None:
    if not one.statistics.dead or one.statistics.dead < DEAD_SHARE * one.channels:
        return None
    return f"it is dead in {_channels(one.statistics.dead, one)}: γ is 0 there, and the output is β whatever comes in"


def _epsilon_dominates(one: "BatchNorm") -> str | None:
    tiny, epsilon, ratio = one.statistics.tiny, one.statistics.epsilon, one.statistics.variance_over_epsilon
    if not tiny or epsilon is None or ratio is None:
        return None
    return (
        f"its variance is below ε ({epsilon:.3g}) in {_channels(tiny, one)}, the least {ratio:.3g} times ε: "
        "there ε decides the scale"
    )


def _large_scale(one: "BatchNorm") -> str | None:
    if one.statistics.scale is None or one.statistics.scale.max <= LARGE_SCALE:
        return None
    return f"it multiplies a channel by {one.statistics.scale.max:.3g}, and the rounding of what comes in with it"


def _drowning_shift(one: "BatchNorm") -> str | None:
    return f"it stays: {one.why}" if one.why is not None and one.why.code is Code.DROWNING_SHIFT else None


def _float16_overflow(one: "BatchNorm") -> str | None:
    half = one.float16
    if half is None or not half.overflow:
        return None
    return f"{_what(one)} would overflow float16, which ends at {FORMATS['fp16'].largest:.0f}: {half.largest:.3g}"


def _float16_loss(one: "BatchNorm") -> str | None:
    half = one.float16
    if half is None or half.lost <= LOST_SHARE * half.numbers:
        return None
    return f"{_what(one)} would lose {half.lost} of {half.numbers} numbers in float16, which become 0"


RULES: dict[str, Callable[["BatchNorm"], str | None]] = {
    "not_finite": _not_finite,
    "negative_variance": _negative_variance,
    "training_mode": _training_mode,
    "never_trained": _never_trained,
    "few_batches": _few_batches,
    "not_counted": _not_counted,
    "dead_channels": _dead_channels,
    "epsilon_dominates": _epsilon_dominates,
    "large_scale": _large_scale,
    "drowning_shift": _drowning_shift,
    "float16_overflow": _float16_overflow,
    "float16_loss": _float16_loss,
}
"""By code, the worst first. docs/inspection.md documents each."""


def _channels(count: int, one: "BatchNorm") -> str:
    return f"{count} of {one.channels} channels"


def _counted(batches: int) -> str:
    return f"{batches} batch{'' if batches == 1 else 'es'}"


def _what(one: "BatchNorm") -> str:
    return "its parameters" if one.into is None else "the weights that absorb it"
