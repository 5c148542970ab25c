"""The certificate: proof that a folded graph, as it is served here, still is the model that was trained."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.proof.algebra import (
        LIMIT,
        Families,
        Truth,
        check_algebra,
        difference,
        find_answers,
        find_truth,
        finite_values,
        relative_difference,
    )
    from fold.proof.certificate import Certificate, GraphParts
    from fold.proof.certifier import GRAPH_PARTS, certify, locate_doubt, prove_graphs, with_witness
    from fold.proof.decisions import FACTOR, margins
    from fold.proof.reference import GraphReference, ProgramReference, Reference, load_reference
    from fold.proof.rounding import check_rounding
    from fold.proof.run_time import OutputVerdict, Tally, Verdict
    from fold.proof.unfolded import load_unfolded
    from fold.proof.verify import compare, disagreement, row_differences, verify_model

__all__ = [
    "FACTOR",
    "GRAPH_PARTS",
    "LIMIT",
    "Certificate",
    "Families",
    "GraphParts",
    "GraphReference",
    "OutputVerdict",
    "ProgramReference",
    "Reference",
    "Tally",
    "Truth",
    "Verdict",
    "certify",
    "check_algebra",
    "check_rounding",
    "compare",
    "difference",
    "disagreement",
    "find_answers",
    "find_truth",
    "finite_values",
    "load_reference",
    "load_unfolded",
    "locate_doubt",
    "margins",
    "prove_graphs",
    "relative_difference",
    "row_differences",
    "verify_model",
    "with_witness",
]

__getattr__ = lazy_names(
    __name__,
    {
        "finite_values": "algebra",
        "relative_difference": "algebra",
        "difference": "algebra",
        "FACTOR": "decisions",
        "Families": "algebra",
        "GRAPH_PARTS": "certifier",
        "GraphParts": "certificate",
        "GraphReference": "reference",
        "LIMIT": "algebra",
        "Certificate": "certificate",
        "OutputVerdict": "run_time",
        "ProgramReference": "reference",
        "Reference": "reference",
        "Tally": "run_time",
        "Truth": "algebra",
        "Verdict": "run_time",
        "certify": "certifier",
        "check_algebra": "algebra",
        "check_rounding": "rounding",
        "compare": "verify",
        "disagreement": "verify",
        "find_answers": "algebra",
        "find_truth": "algebra",
        "load_reference": "reference",
        "load_unfolded": "unfolded",
        "locate_doubt": "certifier",
        "margins": "decisions",
        "prove_graphs": "certifier",
        "row_differences": "verify",
        "verify_model": "verify",
        "with_witness": "certifier",
    },
)
