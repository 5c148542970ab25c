"""Equivalence while serving: checks on request, and a share of the answers compared in the background."""

from service.proof.check import DEFAULT_SAMPLES, DEFAULT_SEARCH_SECONDS, PARTS, Asked, prove
from service.proof.references import References, not_installed
from service.proof.shadow import ShadowChecker

__all__ = [
    "DEFAULT_SAMPLES",
    "DEFAULT_SEARCH_SECONDS",
    "PARTS",
    "Asked",
    "References",
    "ShadowChecker",
    "not_installed",
    "prove",
]
