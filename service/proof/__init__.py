"""Equivalence while serving: checks on request, and a shadow check of a share of the responses in the background."""

from service.proof.check import DEFAULT_SAMPLES, DEFAULT_SEARCH_SECONDS, PARTS, CheckRequest, prove
from service.proof.references import References, not_installed
from service.proof.shadow import ShadowChecker

__all__ = [
    "DEFAULT_SAMPLES",
    "DEFAULT_SEARCH_SECONDS",
    "PARTS",
    "CheckRequest",
    "References",
    "ShadowChecker",
    "not_installed",
    "prove",
]
