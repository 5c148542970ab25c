"""The shifts of all gauges: a sparse linear system over channels, solved by incremental elimination.

Every channel of every tensor has a variable q. An equation is `sum(coefficient * q) = constant`. A solved equation is
kept as `q[pivot] = constant + sum(coefficient * q)`. Its right side contains no pivot of an earlier equation, so values
follow from the last equation to the first. Variables that no equation determines are free, and stay 0.

The choice of the pivot decides which nodes change: the output of weights is preferred (their bias absorbs any shift).
Equations come in groups of one shape, thousands at a time, and a group is added as a whole or not at all.
"""

from dataclasses import dataclass, fields

import numpy as np

from fold.engine.affine import NO_CAUSE, Array, Conflict, Ids

RELATIVE_TOLERANCE = 1e-13
"""Rounding leaves a consistent equation within a few 1e-16 of 0 = 0, relative to the constants in it."""
NONE = -1


@dataclass
class Equations:
    """n equations in rectangular form: `variables` and `coefficients` are [n, terms], everything else is [n].

    Missing terms have the variable NONE. `magnitudes` is the largest constant that ever entered an equation, for the
    test of 0 = 0; `causes` is the cause of the equation that was substituted last.
    """

    variables: Ids
    coefficients: Array
    constants: Array
    magnitudes: Array
    causes: Ids

    def __getitem__(self, rows: Ids) -> "Equations":
        return Equations(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __setitem__(self, rows: Ids, values: "Equations") -> None:
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(values, field.name)

    def widen(self, terms: int) -> None:
        """Make room for `terms` variables in each equation."""
        if terms <= self.variables.shape[1]:
            return
        missing = ((0, 0), (0, terms - self.variables.shape[1]))
        self.variables = np.pad(self.variables, missing, constant_values=NONE)
        self.coefficients = np.pad(self.coefficients, missing)


class Shifts:
    """Variables with a higher `preference[x]` become pivots first."""

    def __init__(self, preference: Ids) -> None:
        n = len(preference)
        self._preference = preference
        self._solved = np.zeros(n, bool)
        # the right side of q[x], for every solved x; a variable is solved at most once
        self._right = Equations(np.full((n, 2), NONE), np.zeros((n, 2)), np.zeros(n), np.zeros(n), np.full(n, NO_CAUSE))
        self._order: list[Ids] = []

    def add(self, terms: list[tuple[float, Ids]], constants: Array, cause: int) -> Conflict | None:
        """Add `sum(coefficient * q[ids]) = constant` for every position: ids and constants are of shape [n].

        Returns the conflict, and adds nothing, if one of them contradicts what is known.
        """
        n = len(constants)
        equation = np.tile(np.arange(n), len(terms))
        coefficient = np.repeat([factor for factor, _ in terms], n).astype(np.float64)
        variables, coefficients = _collect(n, equation, np.concatenate([ids for _, ids in terms]), coefficient)
        group = Equations(
            variables, coefficients, constants.astype(np.float64), np.abs(constants), np.full(n, NO_CAUSE)
        )
        position = np.arange(n)
        before = len(self._order)
        while len(position):
            group = self._reduce(group)
            empty = (group.variables == NONE).all(axis=1)
            wrong = empty & (np.abs(group.constants) > RELATIVE_TOLERANCE * group.magnitudes)
            if wrong.any():
                for pivots in self._order[before:]:
                    self._solved[pivots] = False
                del self._order[before:]
                return Conflict(int(position[wrong][0]), int(group.causes[wrong][0]))
            group, position = group[~empty], position[~empty]
            if len(position):
                taken = self._solve(group, cause)
                left = np.ones(len(position), bool)
                left[taken] = False
                group, position = group[left], position[left]
        return None

    def values(self) -> Array:
        """q of every variable; those that nothing determines are 0."""
        q = np.zeros(len(self._solved))
        for pivots in reversed(self._order):
            right = self._right[pivots]
            others = np.where(right.variables == NONE, 0.0, q[right.variables])
            q[pivots] = right.constants + (right.coefficients * others).sum(axis=1)
        return q

    def _solve(self, group: Equations, cause: int) -> Ids:
        """Solve as many of the reduced equations as do not mention each other's pivots; return which."""
        rank = np.where(group.variables == NONE, NONE, self._preference[group.variables])
        column = np.argmax(rank, axis=1)
        pivot = np.take_along_axis(group.variables, column[:, None], axis=1)[:, 0]
        _, first = np.unique(pivot, return_index=True)
        mentioned = np.isin(group.variables[first], pivot[first]) & (group.variables[first] != pivot[first, None])
        clash = mentioned.any(axis=1)
        first = first[:1] if clash.all() else first[~clash]
        at = np.arange(len(first))
        chosen, column, pivot = group[first], column[first], pivot[first]
        scale = chosen.coefficients[at, column]
        chosen.coefficients = -chosen.coefficients / scale[:, None]
        chosen.variables[at, column], chosen.coefficients[at, column] = NONE, 0.0
        chosen.constants, chosen.magnitudes = chosen.constants / scale, chosen.magnitudes / np.abs(scale)
        chosen.causes[:] = cause
        width = max(self._right.variables.shape[1], chosen.variables.shape[1])
        self._right.widen(width)
        chosen.widen(width)
        self._right[pivot] = chosen
        self._solved[pivot] = True
        self._order.append(pivot)
        return first

    def _reduce(self, group: Equations) -> Equations:
        """Replace every variable that is solved by its right side, until none is left."""
        while True:
            known = (group.variables != NONE) & self._solved[group.variables]
            if not known.any():
                return group
            at, column = np.nonzero(known)
            source = self._right[group.variables[at, column]]
            factor = group.coefficients[at, column]
            constants, magnitudes, causes = group.constants.copy(), group.magnitudes.copy(), group.causes.copy()
            np.subtract.at(constants, at, factor * source.constants)
            np.maximum.at(magnitudes, at, np.abs(factor) * source.magnitudes)
            causes[at] = source.causes
            old_at, old_column = np.nonzero((group.variables != NONE) & ~known)
            new_at, new_column = np.nonzero(source.variables != NONE)
            variables, coefficients = _collect(
                len(constants),
                np.concatenate([old_at, at[new_at]]),
                np.concatenate([group.variables[old_at, old_column], source.variables[new_at, new_column]]),
                np.concatenate(
                    [
                        group.coefficients[old_at, old_column],
                        factor[new_at] * source.coefficients[new_at, new_column],
                    ]
                ),
            )
            group = Equations(variables, coefficients, constants, magnitudes, causes)


def _collect(n: int, equation: Ids, variable: Ids, coefficient: Array) -> tuple[Ids, Array]:
    """Sum the coefficients of equal variables within each equation, drop those that cancel, and pad to a rectangle."""
    order = np.lexsort((variable, equation))
    equation, variable, coefficient = equation[order], variable[order], coefficient[order]
    if len(equation):
        start = np.flatnonzero(np.r_[True, (np.diff(equation) != 0) | (np.diff(variable) != 0)])
        size = np.maximum.reduceat(np.abs(coefficient), start)
        coefficient = np.add.reduceat(coefficient, start)
        keep = np.abs(coefficient) > RELATIVE_TOLERANCE * size
        equation, variable, coefficient = equation[start][keep], variable[start][keep], coefficient[keep]
    counts = np.bincount(equation, minlength=n)
    column = np.arange(len(equation)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = max(int(counts.max(initial=0)), 1)
    variables, coefficients = np.full((n, width), NONE), np.zeros((n, width))
    variables[equation, column], coefficients[equation, column] = variable, coefficient
    return variables, coefficients
