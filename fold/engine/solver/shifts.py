"""The shifts of all gauges: a sparse linear system over channels, solved by incremental elimination.

Every channel of every tensor has a variable q. An equation is `sum(coefficient * q) = constant`. A solved equation is
kept without its pivot: `q[pivot] + sum(coefficient * q) = constant`. It contains no pivot that was solved before or
together with its own, so values follow from the last equation to the first. Variables that no equation determines are
free, and stay 0.

The choice of the pivot decides which nodes change: the output of weights is preferred (their bias absorbs any shift).
Equations come in groups of one shape, thousands at a time, and a group is added as a whole or not at all.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

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
    """Variables with a higher `preference[x]` become pivots first, of equal ones that with the smaller number.

    Inside, a variable is its place in this order, and the pivot of an equation is the first variable in it. So which
    variables become pivots depends on the equations alone, and not on the order in which they are solved.
    """

    def __init__(self, preference: Ids) -> None:
        n = len(preference)
        self._place = np.empty(n, np.int64)
        self._place[np.argsort(-preference, kind="stable")] = np.arange(n)
        self._solved = np.zeros(n, bool)
        # the equation of every solved variable, without this variable; a variable is solved at most once
        self._solutions = Equations(
            np.full((n, 2), NONE), np.zeros((n, 2)), np.zeros(n), np.zeros(n), np.full(n, NO_CAUSE)
        )
        self._order: list[Ids] = []

    def add(self, terms: list[tuple[float, Ids]], constants: Array, cause: int) -> Conflict | None:
        """Add `sum(coefficient * q[ids]) = constant` for every position: ids and constants are of shape [n].

        Returns the conflict, and adds nothing, if one of them contradicts what is known.
        """
        n = len(constants)
        equation = np.tile(np.arange(n), len(terms))
        coefficient = np.repeat([factor for factor, _ in terms], n).astype(np.float64)
        places = self._place[np.concatenate([ids for _, ids in terms])]
        variables, coefficients = _collect(n, equation, places, coefficient)
        group = Equations(
            variables, coefficients, constants.astype(np.float64), np.abs(constants), np.full(n, NO_CAUSE)
        )
        position = np.arange(n)
        before = len(self._order)
        while len(position):
            group = self._reduce(group)
            empty = group.variables[:, 0] == NONE
            wrong = empty & (np.abs(group.constants) > RELATIVE_TOLERANCE * group.magnitudes)
            if wrong.any():
                for pivots in self._order[before:]:
                    self._solved[pivots] = False
                del self._order[before:]
                at = np.flatnonzero(wrong)[position[wrong].argmin()]
                return Conflict(int(position[at]), int(group.causes[at]))
            group, position = group[~empty], position[~empty]
            if len(position):
                group, position = self._solve(group, position, cause)
        return None

    def values(self) -> Array:
        """q of every variable; those that nothing determines are 0."""
        q = np.zeros(len(self._solved))
        for pivots in reversed(self._order):
            solution = self._solutions[pivots]
            others = np.where(solution.variables == NONE, 0.0, q[solution.variables])
            q[pivots] = solution.constants - (solution.coefficients * others).sum(axis=1)
        return q[self._place]

    def _solve(self, group: Equations, position: Ids, cause: int) -> tuple[Equations, Ids]:
        """Solve one of the reduced equations for each pivot. Returns the others, without it, and their positions.

        From each of these the one before it is subtracted, in the order of their second variables. So equations that
        have only their pivot in common, such as `q_i = q_0` for many i, become a chain whose pivots all differ.
        """
        # 1. Equations of one pivot stand side by side.
        order = np.lexsort((position, *group.variables.T[1::-1]))
        group, position = group[order], position[order]
        pivots, solutions = group.variables[:, 0], _solved_for_pivot(group, cause)
        # 2. All but the first of a pivot get the solution of the one before them in place of the pivot.
        again = np.flatnonzero(pivots[1:] == pivots[:-1]) + 1
        leading = np.zeros(group.variables[again].shape, bool)
        leading[:, 0] = True
        others = _substitute(group[again], leading, solutions[again - 1])
        # 3. The first solves its pivot. It may contain other new pivots; each turn halves what is left of a chain.
        first = np.delete(np.arange(len(pivots)), again)
        new, waiting = pivots[first], pivots[first]
        self._keep(new, solutions[first])
        self._solved[new] = True
        self._order.append(new)
        while len(waiting):
            solutions = self._solutions[waiting]
            known = self._known(solutions)
            at = np.flatnonzero(known.any(axis=1))
            waiting = waiting[at]
            self._keep(waiting, self._substituted(solutions[at], known[at]))
        return others, position[again]

    def _keep(self, pivots: Ids, solutions: Equations) -> None:
        width = max(self._solutions.variables.shape[1], solutions.variables.shape[1])
        self._solutions.widen(width)
        solutions.widen(width)
        self._solutions[pivots] = solutions

    def _reduce(self, group: Equations) -> Equations:
        """Replace every variable that is solved by its solution, until none is left."""
        while True:
            known = self._known(group)
            if not known.any():
                return group
            group = self._substituted(group, known)

    def _known(self, group: Equations) -> NDArray[np.bool_]:
        known: NDArray[np.bool_] = (group.variables != NONE) & self._solved[group.variables]
        return known

    def _substituted(self, group: Equations, known: NDArray[np.bool_]) -> Equations:
        return _substitute(group, known, self._solutions[group.variables[known]])


def _solved_for_pivot(group: Equations, cause: int) -> Equations:
    """Each equation divided by the coefficient of its pivot, and without the pivot."""
    scale = group.coefficients[:, 0]
    variables, coefficients = group.variables.copy(), group.coefficients / scale[:, None]
    variables[:, 0], coefficients[:, 0] = NONE, 0.0
    causes = np.full(len(scale), cause)
    return Equations(variables, coefficients, group.constants / scale, group.magnitudes / np.abs(scale), causes)


def _substitute(group: Equations, known: NDArray[np.bool_], solutions: Equations) -> Equations:
    """Replace the variables at `known`, a mask of shape [n, terms], by their solutions, one for each in its order."""
    at, column = np.nonzero(known)
    factor = group.coefficients[at, column]
    constants, magnitudes, causes = group.constants.copy(), group.magnitudes.copy(), group.causes.copy()
    np.subtract.at(constants, at, factor * solutions.constants)
    np.maximum.at(magnitudes, at, np.abs(factor) * solutions.magnitudes)
    causes[at] = solutions.causes
    old_at, old_column = np.nonzero((group.variables != NONE) & ~known)
    new_at, new_column = np.nonzero(solutions.variables != NONE)
    variables, coefficients = _collect(
        len(constants),
        np.concatenate([old_at, at[new_at]]),
        np.concatenate([group.variables[old_at, old_column], solutions.variables[new_at, new_column]]),
        np.concatenate(
            [
                group.coefficients[old_at, old_column],
                -factor[new_at] * solutions.coefficients[new_at, new_column],
            ]
        ),
    )
    return Equations(variables, coefficients, constants, magnitudes, causes)


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
