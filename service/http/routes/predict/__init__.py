"""`POST /v1/models/{name}:predict`, the v1 convention."""

from service.http.routes.predict.predict import Predict, v1_routes

__all__ = ["Predict", "v1_routes"]
