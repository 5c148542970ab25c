"""The certificate: that a folded graph, as it is served here, still is the model that was trained."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.proof.algebra import check_algebra, find_truth
    from fold.proof.certificate import BOUNDED_ROWS, Certificate, certify
    from fold.proof.locate import of_algebra, of_rounding
    from fold.proof.reference import Reference, load_reference
    from fold.proof.rounding import check_rounding
    from fold.proof.run_time import OutputVerdict, Verdict
    from fold.proof.search import search_inputs
    from fold.proof.unfolded import load_unfolded
    from fold.proof.verify import compare, verify_model

__all__ = [
    "BOUNDED_ROWS",
    "Certificate",
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
    "of_algebra",
    "of_rounding",
    "search_inputs",
    "verify_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BOUNDED_ROWS": "certificate",
        "Certificate": "certificate",
        "OutputVerdict": "run_time",
        "Reference": "reference",
        "Verdict": "run_time",
        "certify": "certificate",
        "check_algebra": "algebra",
        "check_rounding": "rounding",
        "compare": "verify",
        "find_truth": "algebra",
        "load_reference": "reference",
        "load_unfolded": "unfolded",
        "of_algebra": "locate",
        "of_rounding": "locate",
        "search_inputs": "search",
        "verify_model": "verify",
    },
)
