"""Which BatchNorms can be removed: solves the scales and shifts of all gauges."""

from fold.engine.solver.solution import Solution, guilty, loud, solve

__all__ = ["Solution", "guilty", "loud", "solve"]
