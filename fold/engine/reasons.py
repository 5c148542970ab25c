"""Why a BatchNorm is kept: a code, a culprit and numbers. The sentence that a user reads is made here, and only here.

Each code stands in docs/folding.md. Its name is part of the JSON of a fold, so it does not change; a program that wants
to know the reason compares codes, and never reads the sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, unique


@unique
class Code(Enum):
    """A kind of reason and its sentence. In JSON it is the name in lower case. Braces hold fields of `Reason`."""

    # Of the BatchNorm itself.
    TRAINING_MODE = "it is in training mode and normalises by the batch; export the model in eval mode"
    COMPUTED_PARAMETERS = "its parameters or statistics are computed, or are inputs that a caller may override"
    NOT_FINITE = "its parameters or statistics hold a value that is not finite"
    NEGATIVE_VARIANCE = "variance + ε of channel {channel} is {variance:.3g}, and must be positive"
    NO_CHANNELS = "its input has one axis, or a channel axis of size 0, and so no channels"
    UNKNOWN_SHAPE = "the shape of its input is not known"
    IN_SUBGRAPH = "it is inside a subgraph, where folding stops"
    DROWNING_SHIFT = (
        "in channel {channel} its shift would be {factor:.0f} times the signal that other nodes read from the same "
        "tensor, and rounding would drown it"
    )
    FLOAT16_RANGE = (
        "in channel {channel} a tensor that is cast to or from float16 would hold numbers near {size:.3g}, for a "
        "signal of at most {before:.3g}"
    )
    OVERFLOW = "its folded weights in {culprit} would overflow the type that stores them"
    LEFT = "the caller named it in `leave`"

    # Of what surrounds it, where no single demand is the reason.
    SHARED_INPUT = "{culprit} reads the same tensor"
    USED_ELSEWHERE = "{culprit} is used elsewhere"
    FIXED_TWICE = "what surrounds it fixes it twice"

    # Demands of graph inputs and outputs, and of what the engine does not know.
    GRAPH_INPUT = "{culprit} is an input of the graph, carried as it is"
    GRAPH_OUTPUT = "{culprit} is an output of the graph, carried as it is"
    CONSTANT_TENSOR = "{culprit} is carried as it is"
    KEPT_BATCHNORM = "{culprit} ({operator}) stays as it is"
    READ_IN_SUBGRAPH = "{culprit} ({operator}) reads it in a subgraph"
    NO_LAW = "{culprit} ({operator}) lets no scale and no shift pass"

    # Demands of weights, normalisations and constants.
    ZERO_PADDING = "{culprit} pads its input with zeros, so that may carry no shift"
    TRANSPOSED_KERNEL = (
        "{culprit} sums another part of its kernel at each output position, so its input may carry no shift"
    )
    COMPUTED_WEIGHTS = "{culprit} ({operator}) has weights or a bias that are not constant"
    QUANTIZED_WEIGHTS = (
        "{culprit} has quantised weights with a scale for each output channel, so its input is carried as it is"
    )
    QUANTIZED_SIGN = "{culprit} has quantised weights whose negative does not fit into their type"
    INPUT_CHANNELS = "{culprit} reads one gauge for each input channel"
    INPUT_FEATURES = "{culprit} reads one gauge for each input feature"
    TENSOR_PRODUCT = "{culprit} ({operator}) is not a product of a tensor with constant weights of its rank or less"
    VECTOR_PRODUCT = "{culprit} ({operator}) is a product with a vector"
    SCALAR_TABLE = "{culprit} ({operator}) takes single numbers out of a table"
    OTHER_BATCHNORM = "{culprit} reads one gauge for each channel, and is a BatchNorm with another scale or shift"
    CONSTANT_SCALE = "{culprit} scales and shifts by constants"
    COMPUTED_SCALE = "{culprit} ({operator}) has a scale or bias that is not constant"
    INSTANCE_NORM = "{culprit} normalises by what it reads, which is carried as it is"
    DIVISION = "{culprit} ({operator}) divides, or multiplies by a constant of another shape than the tensor's"

    # Demands of what works element by element.
    ACTIVATION = "{culprit} lets only positive scales pass, and no shift"
    CLIP_BOUNDS = "{culprit} clips at bounds that would have to move"
    COMPUTED_BOUNDS = "{culprit} ({operator}) takes its bounds at run time"
    EMPTY_BOUNDS = "{culprit} ({operator}) has bounds that leave nothing between them"
    COMPUTED_SLOPE = "{culprit} multiplies by its slope, which is carried as it is"
    NEGATION = "{culprit} turns the sign of a shift"
    TENSOR_SUM = "{culprit} adds tensors, which must agree in their scale"
    TENSOR_EXTREMUM = "{culprit} compares tensors, which must agree in a positive scale and in their shift"
    SQUARE = "{culprit} ({operator}) squares its input"
    GATE = "{culprit} multiplies by it, so it is carried as it is"
    GATED = "{culprit} multiplies by a computed gate, so its input may carry no shift"

    # Demands of pools and reductions.
    MAX_POOL = "{culprit} takes a maximum, which lets only positive scales pass, one for each channel"
    AVERAGE_POOL = "{culprit} takes a mean over space, which lets one gauge for each channel pass"
    COUNTED_PADDING = "{culprit} counts the zeros that it pads with, so its input may carry no shift"
    REDUCED_MEAN = "{culprit} takes a mean, over which the gauge must be the same"
    REDUCED_SUM = "{culprit} takes a sum, over which the gauge must be the same"
    REDUCED_EXTREMUM = (
        "{culprit} takes an extremum, which lets only positive scales pass, and over which the gauge must be the same"
    )
    UNKNOWN_COUNT = "{culprit} sums elements whose number is not known, so its input may carry no shift"
    COMPUTED_AXES = "{culprit} ({operator}) takes its axes at run time"

    # Demands of what moves data.
    UNKNOWN_CONCAT = (
        "{culprit} concatenates along axis {axis}, whose size is not known, so that all inputs must agree in their "
        "gauge"
    )
    COMPUTED_SPLIT = "{culprit} cuts axis {axis} into pieces of computed sizes"
    COMPUTED_SLICE = "{culprit} takes a slice that is known only at run time, over which the gauge must be the same"
    COMPUTED_INDICES = "{culprit} takes places of axis {axis} that are known only at run time"
    COMPUTED_REPEATS = "{culprit} repeats its input a number of times that is known only at run time"
    DEPTH_TO_SPACE = (
        "{culprit} turns channels into places, which lets one gauge for the channels of a block and all of space pass"
    )
    SPACE_TO_DEPTH = "{culprit} turns places into channels, over which the gauge must be the same"
    MERGED_DIMENSIONS = "{culprit} merges dimensions whose sizes are not known, over which the gauge must be the same"
    LOST_CHANNELS = "{culprit} ({operator}) changes the shape in a way that channels cannot be followed through"
    TYPE_CHANGE = "{culprit} ({operator}) converts to or from a type that is no float"
    DROPOUT = "{culprit} ({operator}) may be in training mode"
    INFINITE_PADDING = "{culprit} pads its input with infinities, which lets only positive scales pass"
    COMPUTED_PADDING = (
        "{culprit} pads by amounts that are known only at run time, over which the gauge must be the same"
    )
    COPIED_PADDING = "{culprit} pads with what lies along the same axis, over which the gauge must be the same"
    NUMBER_PADDING = "{culprit} ({operator}) pads with a number that is neither zero nor infinite"
    INTERPOLATION = "{culprit} interpolates, which lets one gauge along all that it resizes pass"
    CROP_AND_RESIZE = "{culprit} ({operator}) resizes by {mode}, which may take something else than its input"

    def __str__(self) -> str:
        return self.name.lower()


@unique
class BlockedPart(Enum):
    """What of a BatchNorm could not move into other weights, as the start of a sentence."""

    SCALE = "the scale of channel {channel} ({value:.3g}) cannot move"
    SHIFT = "the shift of channel {channel} ({value:.3g}) cannot move"
    DEAD_CHANNEL = "γ is 0 in channel {channel}, which only weights that feed nothing else can take up"

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Blocked:
    """The first channel that could not move, and its scale or shift."""

    part: BlockedPart
    channel: int
    value: float


@dataclass(frozen=True)
class Reason:
    """Why something is kept, or why a gauge is constrained. `str` of it is the sentence.

    `culprit` is a node, or an input or output of the graph; `details` are what else the sentence names. `blocked` tells
    what could not move, where the code is a demand that something else makes.
    """

    code: Code
    culprit: str
    details: Mapping[str, float | str] = field(default_factory=dict, hash=False)
    blocked: Blocked | None = None

    def __str__(self) -> str:
        sentence = self.code.value.format(culprit=self.culprit, **self.details)
        if self.blocked is None:
            return sentence
        return f"{self.blocked.part.value.format(**vars(self.blocked))}: {sentence}"


def reason_json(why: Reason | None) -> dict[str, str | None]:
    """The keys that give a reason in JSON (docs/formats.md), all null where there is none."""
    if why is None:
        return dict.fromkeys(("code", "blocked", "reason", "culprit"))
    blocked = None if why.blocked is None else str(why.blocked.part)
    return {"code": str(why.code), "blocked": blocked, "reason": str(why), "culprit": why.culprit}
