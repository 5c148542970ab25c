"""What people see in a browser: the page at `/`, the API's at `/docs`, and the reports of models."""

from service.http.page.index import locked_page, wants_page
from service.http.page.routes import page_routes

__all__ = ["locked_page", "page_routes", "wants_page"]
