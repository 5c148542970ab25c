"""One law an operator: which gauges around a node are allowed without changing what the graph computes.

To teach the engine an operator, write its law and enter it in `LAWS`; nothing else needs a change. A law reads the
layouts of a node's inputs, writes those of its outputs, and demands what must hold between them. A node with parameters
also says how these are re-expressed (`Absorber`). What has no law is a boundary: everything around it is carried as it
is. The table stands in docs/design.md.

    operator                               law
    Conv, Gemm, MatMul with constant W     any gauge on either side; padding with zeros needs q = 0 on what is read
    ConvTranspose with constant W          any gauge; q = 0 on what is read
    BatchNormalization                     any gauge; vanishes if p_u = s*p_v and q_u = t*p_v + q_v
    Add of a constant                      p_out = p_in, any q
    Add of two tensors                     all p equal, q_out = q_a + q_b
    Relu                                   p_out = p_in > 0, both q = 0
    MaxPool, GlobalMaxPool                 p_out = p_in > 0, q_out = q_in
    AveragePool, GlobalAveragePool,        p_out = p_in, q_out = q_in; counted padding needs q = 0
    ReduceMean
    Concat                                 gauges concatenate
    Flatten, Reshape, Squeeze, Unsqueeze,  gauges move as the data does
    Transpose, Identity, Dropout
    Pad with zeros                         p_out = p_in, both q = 0
    Shape, Size                            read no value
"""

from collections.abc import Callable

import onnx_ir as ir

from fold.gauge import Gauges
from fold.laws.elementwise import add, relu
from fold.laws.movement import concat, dropout, identity, pad, reads_no_value, reshape, transpose
from fold.laws.normalisation import batch_normalization
from fold.laws.pools import average_pool, max_pool, reduce_mean
from fold.laws.weights import conv, conv_transpose, gemm, matmul

Law = Callable[[ir.Node, Gauges], None]

LAWS: dict[str, Law] = {
    "Add": add,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Dropout": dropout,
    "Flatten": reshape,
    "Gemm": gemm,
    "GlobalAveragePool": average_pool,
    "GlobalMaxPool": max_pool,
    "Identity": identity,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Reshape": reshape,
    "Shape": reads_no_value,
    "Size": reads_no_value,
    "Squeeze": reshape,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
