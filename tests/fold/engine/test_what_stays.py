"""What folding must leave: the source, names and metadata, the interface, and a graph without BatchNorm altogether."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import fold
from support.folding import ARCHITECTURES, architecture, interface, randomise

FOLDS = """
    [conv] u = Conv <pads = [1, 1, 1, 1]> (x, W)
    [norm] v = BatchNormalization(u, gamma, beta, mean, variance)
    [act] r = Relu(v)
    [pool] y = GlobalAveragePool(r)
"""
KEEPS = """
    [gate] u = Sigmoid(x)
    [norm] v = BatchNormalization(u, gamma, beta, mean, variance)
    [act] y = Softmax(v)
"""
WITHOUT = """
    [conv] u = Conv <pads = [1, 1, 1, 1]> (x, W)
    [bound] v = Max(u, two)
    [none] z = Identity(v)
    [act] y = Clip(z, two)
"""


def described(nodes: str) -> onnx.ModelProto:
    """A model with everything that may be said of it beside what it computes; every text is another."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 19, "com.example": 3], producer_name: "maker", producer_version: "2.1",
         domain: "org.example", model_version: 7, doc_string: "of the model", metadata_props: ["author": "somebody"]>
        g (float[n, 2, 5, 6] x) => (float[n, c, h, w] y)
        <float two = {{2}}, float[2] gamma = {{3, -2}}, float[2] beta = {{1, -1}}, float[2] mean = {{2, 4}},
         float[2] variance = {{1, 3}}> {{ {nodes} }}
    """)
    W = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "W"))
    proto.graph.doc_string = "of the graph"
    proto.graph.metadata_props.add(key="graph", value="is small")
    proto.graph.input[0].doc_string, proto.graph.output[0].doc_string = "a picture", "scores"
    for node in proto.graph.node:
        node.doc_string = f"what {node.name} is for"
        scopes = ["", f"block.{node.name}", node.name]
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(scopes))
    return proto


def serialised(model: ir.Model) -> bytes:
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content


def nodes_by_name(model: ir.Model) -> dict[str | None, ir.Node]:
    return {node.name: node for node in model.graph}


@pytest.mark.parametrize(("nodes", "gone"), [(FOLDS, {"norm"}), (KEEPS, set()), (WITHOUT, set())])
def test_what_is_said_of_model_graph_and_nodes_stands_in_the_folded_one(nodes, gone) -> None:
    model = ir.from_proto(described(nodes))
    folded, report = fold.fold_model(model)
    assert {entry.node for entry in report.folded} == gone
    assert {entry.name for entry in (*report.folded, *report.kept)} <= {"block.norm"}
    said = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    assert [getattr(folded, name) for name in said] == [9, "maker", "2.1", "org.example", 7, "of the model"]
    assert folded.metadata_props == {"author": "somebody"}
    assert folded.opset_imports == {"": 19, "com.example": 3}
    assert (folded.graph.name, folded.graph.doc_string) == ("g", "of the graph")
    assert folded.graph.metadata_props == {"graph": "is small"}
    assert [value.doc_string for value in (*folded.graph.inputs, *folded.graph.outputs)] == ["a picture", "scores"]
    before, after = nodes_by_name(model), nodes_by_name(folded)
    assert set(before) - set(after) == gone
    for name, node in after.items():
        assert node.doc_string == f"what {name} is for"
        assert node.metadata_props == before[name].metadata_props


@pytest.mark.parametrize("opened", [False, True])
def test_without_a_batchnorm_the_bytes_are_the_same(opened) -> None:
    model = ir.from_proto(described(WITHOUT))
    folded, report = fold.fold_model(model, open_activations=opened)
    assert report.batchnorms == 0
    assert serialised(folded) == serialised(model)


@pytest.mark.parametrize("opened", [False, True])
def test_where_none_can_be_folded_only_the_shapes_between_are_filled_in(opened) -> None:
    model = ir.from_proto(described(KEEPS))
    folded, report = fold.fold_model(model, open_activations=opened)
    assert report.folded == ()
    before, after = ir.to_proto(model), ir.to_proto(folded)
    assert {"u", "v"} <= {value.name for value in after.graph.value_info}
    for proto in (before, after):
        del proto.graph.value_info[:]
    assert after == before


@pytest.mark.parametrize("nodes", [FOLDS, KEEPS, WITHOUT])
@pytest.mark.parametrize("opened", [False, True])
def test_the_source_is_untouched_and_names_types_and_shapes_outside_are_the_same(nodes, opened) -> None:
    model = ir.from_proto(described(nodes))
    before, outside = serialised(model), interface(model)
    folded, _ = fold.fold_model(model, open_activations=opened)
    assert serialised(model) == before
    assert interface(folded) == outside
    assert outside[-1] == ("y", ir.DataType.FLOAT, "[n,c,h,w]")  # although more of it can be inferred


def test_of_a_frozen_resnet_no_product_and_no_sum_with_a_constant_is_left() -> None:
    """Its BatchNorms are written out as Mul and Add; what is added in the folded graph are two branches."""
    module = randomise(architecture("frozen_resnet"), seed=11)
    model = fold.export_module(module, torch.randn(2, *ARCHITECTURES["frozen_resnet"]))

    def by_constants(model: ir.Model) -> list[ir.Node]:
        return [
            node
            for node in model.graph
            if node.op_type in ("Mul", "Add", "Sub", "Div")
            and any(value is not None and ir.convenience.get_const_tensor(value) is not None for value in node.inputs)
        ]

    frozen = [m for m in module.modules() if type(m).__name__ == "FrozenBatchNorm2d"]
    assert len(by_constants(model)) == 2 * len(frozen) > 0
    folded, report = fold.fold_model(model)
    assert len(report.folded) == len(frozen)
    assert by_constants(folded) == []
    assert {node.op_type for node in folded.graph} & {"Mul", "Sub", "Div"} == set()
