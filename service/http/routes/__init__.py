"""The endpoints and routes: what answers each path."""

from service.http.routes.control import control_routes
from service.http.routes.equivalence import equivalence_routes
from service.http.routes.infer import Infer
from service.http.routes.metadata import metadata_routes
from service.http.routes.openapi import PATHS
from service.http.routes.predict import Predict, v1_routes
from service.http.routes.proofs import ProofQueue

__all__ = [
    "PATHS",
    "Infer",
    "Predict",
    "ProofQueue",
    "control_routes",
    "equivalence_routes",
    "metadata_routes",
    "v1_routes",
]
