"""Which BatchNorms can be removed: solves the scales and shifts of all gauges."""

from fold.engine.solver.solution import Solution, sharing_scales, solve, with_large_shifts

__all__ = ["Solution", "sharing_scales", "solve", "with_large_shifts"]
