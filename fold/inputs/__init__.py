"""Inputs of a model: drawn from a seed, read from files or made from images; and input scaling (`--normalize`)."""

from fold.inputs.dataset import DataSet, open_dataset
from fold.inputs.drawn import FREE_SIZES, Family, UndrawableError, draw_inputs, drawn_inputs
from fold.inputs.given import as_datatype, by_name, check_inputs, input_files, is_image, read_inputs
from fold.inputs.images import decode_image, image_tensor, read_image, read_preprocessing, refuse_misfit
from fold.inputs.scaling import ALREADY, TO_NCHW, AxisOrder, InputScaling, ResolvedScaling, parse_scaling, unscaled
from fold.inputs.sizes import working_sizes, works

__all__ = [
    "ALREADY",
    "FREE_SIZES",
    "TO_NCHW",
    "AxisOrder",
    "DataSet",
    "Family",
    "InputScaling",
    "ResolvedScaling",
    "UndrawableError",
    "as_datatype",
    "by_name",
    "check_inputs",
    "decode_image",
    "draw_inputs",
    "drawn_inputs",
    "image_tensor",
    "input_files",
    "is_image",
    "open_dataset",
    "parse_scaling",
    "read_image",
    "read_inputs",
    "read_preprocessing",
    "refuse_misfit",
    "unscaled",
    "working_sizes",
    "works",
]
