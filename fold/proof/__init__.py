"""The certificate: proof that a folded graph, as it is served here, still is the model that was trained."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.proof.algebra import check_algebra, find_truth
    from fold.proof.certificate import Certificate, GraphParts
    from fold.proof.certifier import GRAPH_PARTS, certify, prove_graphs
    from fold.proof.reference import Reference, load_reference
    from fold.proof.rounding import check_rounding
    from fold.proof.run_time import OutputVerdict, Verdict
    from fold.proof.unfolded import load_unfolded
    from fold.proof.verify import compare, verify_model

__all__ = [
    "GRAPH_PARTS",
    "Certificate",
    "GraphParts",
    "OutputVerdict",
    "Reference",
    "Verdict",
    "certify",
    "check_algebra",
    "check_rounding",
    "compare",
    "find_truth",
    "load_reference",
    "load_unfolded",
    "prove_graphs",
    "verify_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "GRAPH_PARTS": "certifier",
        "GraphParts": "certificate",
        "Certificate": "certificate",
        "OutputVerdict": "run_time",
        "Reference": "reference",
        "Verdict": "run_time",
        "certify": "certifier",
        "check_algebra": "algebra",
        "check_rounding": "rounding",
        "compare": "verify",
        "find_truth": "algebra",
        "load_reference": "reference",
        "load_unfolded": "unfolded",
        "prove_graphs": "certifier",
        "verify_model": "verify",
    },
)
