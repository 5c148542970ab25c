"""One law for each operator: the gauges around a node that leave what the graph computes unchanged.

To support an operator, write its law in one of these files and add it to `LAWS`; nothing else changes. A law reads the
layouts of a node's inputs, writes those of its outputs, and adds the constraints between them. For a node with
parameters it also adds an `Absorber`, which computes the new parameters. A node without a law is a boundary: the
tensors around it are carried as they are. docs/folding.md has the full table.

    operator                                   file         law
    Conv, Gemm, MatMul with constant W         weights      any gauges; zero padding needs q_in = 0
    ConvTranspose with constant W              weights      any gauges, but q_in = 0
    the same with W behind DequantizeLinear    quantized    any gauge of the output; its input is carried as it is
    BatchNormalization                         batchnorm    any gauges; removed if p_u = s*p_v and q_u = t*p_v + q_v
    Add, Sub, Mul, Div with constants          batchnorm    any gauges; a chain is one map v = s*u + t
    Relu, Clip, LeakyRelu, PRelu, Abs          activations  p_out = p_in > 0, both q = 0; opened Relu, Clip: any gauge
    Add, Sub, Sum, Mean of tensors             arithmetic   all p equal, q_out = q_a + q_b
    Max, Min of tensors                        arithmetic   all p equal and positive, all q equal
    Mul by a computed gate                     arithmetic   p_out = p_in, both q = 0
    MaxPool, GlobalMaxPool, ReduceMax, -Min    pools        p_out = p_in > 0, q_out = q_in
    AveragePool, GlobalAveragePool, ReduceMean pools        p_out = p_in, q_out = q_in; counted padding needs q = 0
    ReduceSum of n elements                    pools        p_out = p_in, q_out = n*q_in; q = 0 if n is not known
    Concat, Split, Slice, Gather               movement     gauges are joined, cut and picked as the data is
    Reshape, Transpose, Expand, Tile, ...      movement     gauges move as the data does
    Resize, Upsample                           movement     p_out = p_in, q_out = q_in, equal along resized axes
    Pad                                        movement     zeros: q = 0 in new places; infinities: p > 0
    Cast, CastLike between float types         movement     gauges pass
    Shape, Size                                movement     none: they read no values
"""

from collections.abc import Callable

import onnx_ir as ir

from fold.engine.gauge import Gauges
from fold.engine.laws.activations import CLIPS, clip, homogeneous, prelu, relu
from fold.engine.laws.arithmetic import extremum, negate, total
from fold.engine.laws.batchnorm import (
    affine_or_tensors,
    batch_normalization,
    instance_normalization,
    scale_and_shift,
)
from fold.engine.laws.chains import Kind, affine_step, find_affines, scales_input, written_out
from fold.engine.laws.movement import (
    cast,
    concat,
    depth_to_space,
    dropout,
    expand,
    identity,
    pad,
    reads_no_value,
    reshape,
    resize,
    slice_,
    space_to_depth,
    split,
    squeeze,
    tile,
    transpose,
    unsqueeze,
)
from fold.engine.laws.pools import average_pool, max_pool, reduce_extremum, reduce_mean, reduce_sum
from fold.engine.laws.quantized import dequantize
from fold.engine.laws.weights import (
    can_read_shifts,
    conv,
    conv_transpose,
    embedding_or_gather,
    gemm,
    knows_its_sizes,
    matmul,
)

__all__ = [
    "CLIPS",
    "LAWS",
    "Kind",
    "Law",
    "affine_step",
    "can_read_shifts",
    "find_affines",
    "knows_its_sizes",
    "scale_and_shift",
    "scales_input",
    "written_out",
]

Law = Callable[[ir.Node, Gauges], None]

LAWS: dict[str, Law] = {
    "Abs": homogeneous,
    "Add": affine_or_tensors,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "CastLike": cast,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "DequantizeLinear": dequantize,
    "Div": affine_or_tensors,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": embedding_or_gather,
    "Gemm": gemm,
    "GlobalAveragePool": average_pool,
    "GlobalMaxPool": max_pool,
    "Identity": identity,
    "InstanceNormalization": instance_normalization,
    "LeakyRelu": homogeneous,
    "MatMul": matmul,
    "Max": extremum,
    "MaxPool": max_pool,
    "Mean": total,
    "Min": extremum,
    "Mul": affine_or_tensors,
    "Neg": negate,
    "PRelu": prelu,
    "Pad": pad,
    "ReduceMax": reduce_extremum,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_extremum,
    "ReduceSum": reduce_sum,
    "Relu": relu,
    "Reshape": reshape,
    "Resize": resize,
    "Shape": reads_no_value,
    "Size": reads_no_value,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Sub": affine_or_tensors,
    "Sum": total,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Upsample": resize,
}
