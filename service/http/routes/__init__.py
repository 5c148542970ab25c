"""The endpoints and routes: what answers each path."""

from service.http.routes.control import control_routes
from service.http.routes.docs import render_docs
from service.http.routes.equivalence import Equivalence, equivalence_routes
from service.http.routes.infer import Infer
from service.http.routes.metadata import metadata_routes
from service.http.routes.openapi import PATHS
from service.http.routes.page import Page, read_report, render_page
from service.http.routes.predict import Predict, v1_routes

__all__ = [
    "PATHS",
    "Equivalence",
    "Infer",
    "Page",
    "Predict",
    "control_routes",
    "equivalence_routes",
    "metadata_routes",
    "read_report",
    "render_docs",
    "render_page",
    "v1_routes",
]
