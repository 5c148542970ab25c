"""What people see in a browser: the page at `/`, the API's at `/docs`, and the reports of models."""

from service.http.page.docs import render_docs
from service.http.page.index import Page, read_report, render_page

__all__ = ["Page", "read_report", "render_docs", "render_page"]
