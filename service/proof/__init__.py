"""Equivalence while serving: checks on request, and a shadow check of a share of the responses in the background."""

from service.proof.answer import ReferenceAnswer, reference_answers
from service.proof.check import (
    DEFAULT_SAMPLES,
    DEFAULT_SEARCH_SECONDS,
    PARTS,
    CheckRequest,
    Tell,
    inspect_batchnorms,
    measure_layers,
    prove,
)
from service.proof.references import Job, References, not_installed
from service.proof.shadow import ShadowChecker

__all__ = [
    "DEFAULT_SAMPLES",
    "DEFAULT_SEARCH_SECONDS",
    "PARTS",
    "CheckRequest",
    "Job",
    "ReferenceAnswer",
    "References",
    "ShadowChecker",
    "Tell",
    "inspect_batchnorms",
    "measure_layers",
    "not_installed",
    "prove",
    "reference_answers",
]
