"""One law an operator: which gauges around a node are allowed without changing what the graph computes.

To teach the engine an operator, write its law and enter it in `LAWS`; nothing else needs a change. A law reads the
layouts of a node's inputs, writes those of its outputs, and demands what must hold between them. A node with parameters
also says how these are re-expressed (`Absorber`). What has no law is a boundary: everything around it is carried as it
is. The table stands in docs/folding.md.

    operator                               law
    Conv, Gemm, MatMul with constant W     any gauge on either side; padding with zeros needs q = 0 on what is read
    ConvTranspose with constant W          any gauge; q = 0 on what is read
    BatchNormalization                     any gauge; vanishes if p_u = s*p_v and q_u = t*p_v + q_v
    Add of a constant                      p_out = p_in, any q
    Add of two tensors                     all p equal, q_out = q_a + q_b
    Relu                                   p_out = p_in > 0, both q = 0
    MaxPool, GlobalMaxPool,                p_out = p_in > 0, q_out = q_in
    ReduceMax, ReduceMin
    AveragePool, GlobalAveragePool,        p_out = p_in, q_out = q_in; counted padding needs q = 0
    ReduceMean
    ReduceSum of n elements                p_out = p_in, q_out = n*q_in; q = 0 if n is not known
    Concat, Split, Slice, Gather           gauges are put together, cut and picked as the data is
    Flatten, Reshape, Squeeze, Unsqueeze,  gauges move as the data does
    Transpose, Expand, Tile, Identity,
    Dropout, Cast to the same type,
    DepthToSpace, SpaceToDepth
    Resize, Upsample                       p_out = p_in, q_out = q_in, the same along what is resized
    Pad with zeros                         p_out = p_in, q = 0 in the new places
    Pad with infinities                    p_out = p_in > 0, q_out = q_in
    Pad by reflect, edge or wrap           p_out = p_in, q_out = q_in, the same along what is padded
    Shape, Size                            read no value
"""

from collections.abc import Callable

import onnx_ir as ir

from fold.engine.gauge import Gauges
from fold.engine.laws.activations import CLIPS, clip, homogeneous, prelu, relu
from fold.engine.laws.arithmetic import extremum, negate, total
from fold.engine.laws.batchnorm import (
    affine_or_tensors,
    affine_step,
    batch_normalization,
    instance_normalization,
    normalises_input,
    scale_and_shift,
    written_out,
)
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
    tile,
    transpose,
)
from fold.engine.laws.pools import average_pool, max_pool, reduce_extremum, reduce_mean, reduce_sum
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
    "Law",
    "affine_step",
    "can_read_shifts",
    "knows_its_sizes",
    "normalises_input",
    "scale_and_shift",
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
    "Squeeze": reshape,
    "Sub": affine_or_tensors,
    "Sum": total,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
    "Upsample": resize,
}
