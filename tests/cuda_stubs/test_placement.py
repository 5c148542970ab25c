"""Every architecture opens on the CUDA provider, in float32 and in float16, and no node computes elsewhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fold
from fold.engine import round_weights
from fold.graph import save_graph
from fold.precision import lower, reduce
from fold.runtime import PROVIDERS, CudaOptions, computed_elsewhere, open_session, placement
from support.folding import ARCHITECTURES, unfolded

pytestmark = pytest.mark.cuda_stubs

OPTIONS = {"plain": CudaOptions(), "graphs": CudaOptions(graphs=True), "nhwc": CudaOptions(nhwc=True)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_node_computes_elsewhere(name: str, tmp_path: Path) -> None:
    closed, _ = fold.fold_model(unfolded(name))
    x = np.random.default_rng(0).standard_normal((2, *ARCHITECTURES[name])).astype(np.float32)
    half, chosen = reduce(closed.clone(), "fp16", [{closed.graph.inputs[0].name or "": x}], "cuda")
    lower(half, "fp16", chosen.tensors)
    round_weights(half.graph)
    for precision, graph in (("fp32", closed), ("fp16", half)):
        file = tmp_path / f"{precision}.onnx"
        save_graph(graph, file)
        for option, cuda in OPTIONS.items():
            cuda = replace(cuda, tf32=precision != "fp32")  # noqa: PLW2901
            session = open_session(file, provider="cuda", cuda=cuda, record_placement=True)
            assert computed_elsewhere(session) == [], (precision, option)
            assert placement(session)[PROVIDERS["cuda"]], (precision, option)
