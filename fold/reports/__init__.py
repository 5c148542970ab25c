"""Reports for people: tables for a terminal, HTML pages and pictures."""

from fold.reports.bench import bench_table, captions, write_picture
from fold.reports.comparison import comparison_table, write_comparison_picture
from fold.reports.inspection import (
    check_inspection_page,
    folding_listing,
    inspection_page,
    inspection_summary,
    inspection_table,
    ranges,
    statistics_listing,
    suspicion_lines,
    write_inspection_page,
)
from fold.reports.observe import observe_layers
from fold.reports.page import write_html
from fold.reports.rendering import check_picture
from fold.reports.tables import affines_line, certificate_table, fold_summary, fold_table, kept_lines

__all__ = [
    "affines_line",
    "bench_table",
    "captions",
    "certificate_table",
    "check_inspection_page",
    "check_picture",
    "comparison_table",
    "fold_summary",
    "fold_table",
    "folding_listing",
    "inspection_page",
    "inspection_summary",
    "inspection_table",
    "kept_lines",
    "observe_layers",
    "ranges",
    "statistics_listing",
    "suspicion_lines",
    "write_comparison_picture",
    "write_html",
    "write_inspection_page",
    "write_picture",
]
