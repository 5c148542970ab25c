"""The shifts of all gauges: a sparse linear system over channels, solved by incremental elimination.

Every channel of every tensor has a variable q. An equation is `sum(coefficient * q) = constant`. A solved equation is
kept without its pivot: `q[pivot] + sum(coefficient * q) = constant`. It contains no pivot that was solved before or
together with its own, so values follow from the last equation to the first. Variables that no equation determines are
free, and stay 0.

The choice of the pivot decides which nodes change: the output of weights is preferred (their bias absorbs any shift).
Equations come in groups of one shape, thousands at a time, and a group is added as a whole or not at all.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fold.engine.affine import NO_CAUSE, Array, Conflict, Ids

RELATIVE_TOLERANCE = 1e-13
"""Rounding leaves a consistent equation within a few 1e-16 of 0 = 0, relative to the constants in it."""
SHORT = 2
"""Variables of an equation up to which a substitution makes no equation longer."""


@dataclass
class Equations:
    """n equations, one behind the other: the first has the first `counts[0]` of all `variables` and `coefficients`.

    `counts`, `constants`, `magnitudes` and `causes` are [n]. `magnitudes` is the largest constant that ever entered an
    equation, for the test of 0 = 0; `causes` is the cause of one that was substituted last.
    """

    counts: Ids
    variables: Ids
    coefficients: Array
    constants: Array
    magnitudes: Array
    causes: Ids

    def __getitem__(self, rows: Ids) -> "Equations":
        places = _places(self.starts[rows], self.counts[rows])
        return Equations(
            self.counts[rows],
            self.variables[places],
            self.coefficients[places],
            self.constants[rows],
            self.magnitudes[rows],
            self.causes[rows],
        )

    @property
    def starts(self) -> Ids:
        """Where the terms of each equation begin; [n]."""
        starts: Ids = np.cumsum(self.counts) - self.counts
        return starts

    @property
    def rows(self) -> Ids:
        """The equation of each term."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


class Shifts:
    """Variables with a higher `preference[x]` become pivots first, of equal ones that with the smaller number.

    Inside, a variable is its place in this order, and the pivot of an equation is the first variable in it. So which
    variables become pivots depends on the equations alone, and not on the order in which they are solved.
    """

    def __init__(self, preference: Ids) -> None:
        n = len(preference)
        self._number = np.argsort(-preference, kind="stable")  # by place
        self._place = np.empty(n, np.int64)
        self._place[self._number] = np.arange(n)
        self._solved = np.zeros(n, bool)
        self._order: list[Ids] = []
        # The equation of each solved variable, without this variable: its terms are in two arrays with room at the end.
        self._starts, self._counts = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._constants, self._magnitudes, self._causes = np.zeros(n), np.zeros(n), np.full(n, NO_CAUSE)
        self._terms = 0
        self._variables, self._coefficients = np.empty(n, np.int64), np.empty(n)

    def add(self, terms: list[tuple[float, Ids]], constants: Array, cause: int) -> Conflict | None:
        """Add `sum(coefficient * q[ids]) = constant` for every position: ids and constants are of shape [n].

        Returns the conflict, and adds nothing, if one of them contradicts what is known.
        """
        n = len(constants)
        equation = np.tile(np.arange(n), len(terms))
        coefficient = np.repeat([factor for factor, _ in terms], n).astype(np.float64)
        places = self._place[np.concatenate([ids for _, ids in terms])]
        collected = _collect(n, equation, places, coefficient)
        group = Equations(*collected, constants.astype(np.float64), np.abs(constants), np.full(n, NO_CAUSE))
        position = np.arange(n)
        before = len(self._order)
        while len(position):
            while (known := self._solved[group.variables]).any():
                group = self._substituted(group, known)
            empty = group.counts == 0
            wrong = empty & (np.abs(group.constants) > RELATIVE_TOLERANCE * group.magnitudes)
            if wrong.any():
                for pivots in self._order[before:]:
                    self._solved[pivots] = False
                del self._order[before:]
                at = np.flatnonzero(wrong)[position[wrong].argmin()]
                return Conflict(int(position[at]), int(group.causes[at]))
            group, position = group[np.flatnonzero(~empty)], position[~empty]
            if len(position):
                group, position = self._solve(group, position, cause)
        return None

    def values(self) -> Array:
        """q of every variable; those that nothing determines are 0."""
        q = np.zeros(len(self._solved))
        for pivots in reversed(self._order):
            solutions = self._solutions(pivots)
            others = solutions.coefficients * q[solutions.variables]
            q[pivots] = solutions.constants - np.bincount(solutions.rows, others, len(pivots))
        return q[self._place]

    def _solve(self, group: Equations, position: Ids, cause: int) -> tuple[Equations, Ids]:
        """Solve at most one of the reduced equations for each pivot. Returns the others, and their positions.

        Equations of one or two variables, such as `q_i = q_0` for many i, are solved at once: those of one pivot are
        subtracted from one another, which makes a chain whose pivots all differ. Of longer ones those wait that contain
        another pivot; so the number of their terms grows no faster than it must.
        """
        # 1. Equations of one pivot stand side by side, short ones first.
        short = group.counts <= SHORT
        second = np.where(short, group.variables[group.starts + group.counts - 1], len(self._solved))
        order = np.lexsort((position, second, group.variables[group.starts]))
        group, position, short = group[order], position[order], short[order]
        pivots, solutions = group.variables[group.starts], _solved_for_pivot(group, cause)
        first = np.r_[True, pivots[1:] != pivots[:-1]]
        # 2. The first of each pivot solves it, if it is short. A chain of these is halved in each turn.
        taken = first & short
        waiting = pivots[taken]
        self._take(waiting, solutions[np.flatnonzero(taken)])
        while len(waiting):
            kept = self._solutions(waiting)
            at = np.unique(kept.rows[self._solved[kept.variables]])
            kept, waiting = kept[at], waiting[at]
            self._keep(waiting, self._substituted(kept, self._solved[kept.variables]))
        # 3. A longer one solves its pivot if it contains no other pivot.
        new = np.zeros(len(self._solved), bool)
        new[pivots[first]] = True
        clash = np.bincount(solutions.rows, new[solutions.variables], len(pivots)) > 0
        long = first & ~short & ~clash
        self._take(pivots[long], solutions[np.flatnonzero(long)])
        # 4. Each short one that is left gets the solution of the one before it in place of the pivot.
        behind = np.flatnonzero(~first & short)
        left = np.flatnonzero(~(taken | long))
        others = group[left]
        leading = np.zeros(len(others.variables), bool)
        leading[others.starts[~first[left] & short[left]]] = True
        numbers = self._number[others.variables[leading]]
        return _substitute(others, leading, solutions[behind - 1], numbers), position[left]

    def _take(self, pivots: Ids, solutions: Equations) -> None:
        """Take equations as the solutions of their pivots, which are then solved."""
        if len(pivots):
            self._keep(pivots, solutions)
            self._solved[pivots] = True
            self._order.append(pivots)

    def _keep(self, pivots: Ids, solutions: Equations) -> None:
        end = self._terms + len(solutions.variables)
        if end > len(self._variables):
            self._variables = np.concatenate([self._variables, np.empty(end, np.int64)])
            self._coefficients = np.concatenate([self._coefficients, np.empty(end)])
        self._variables[self._terms : end] = solutions.variables
        self._coefficients[self._terms : end] = solutions.coefficients
        self._starts[pivots], self._counts[pivots] = self._terms + solutions.starts, solutions.counts
        self._constants[pivots], self._magnitudes[pivots] = solutions.constants, solutions.magnitudes
        self._causes[pivots] = solutions.causes
        self._terms = end

    def _solutions(self, pivots: Ids) -> Equations:
        counts = self._counts[pivots]
        places = _places(self._starts[pivots], counts)
        return Equations(
            counts,
            self._variables[places],
            self._coefficients[places],
            self._constants[pivots],
            self._magnitudes[pivots],
            self._causes[pivots],
        )

    def _substituted(self, group: Equations, known: NDArray[np.bool_]) -> Equations:
        variables = group.variables[known]
        return _substitute(group, known, self._solutions(variables), self._number[variables])


def _solved_for_pivot(group: Equations, cause: int) -> Equations:
    """Each equation divided by the coefficient of its pivot, and without the pivot."""
    scale = group.coefficients[group.starts]
    coefficients = group.coefficients / np.repeat(scale, group.counts)
    return Equations(
        group.counts - 1,
        np.delete(group.variables, group.starts),
        np.delete(coefficients, group.starts),
        group.constants / scale,
        group.magnitudes / np.abs(scale),
        np.full(len(scale), cause),
    )


def _substitute(group: Equations, known: NDArray[np.bool_], solutions: Equations, numbers: Ids) -> Equations:
    """Replace the terms at `known`, a mask of all terms, by the solutions of their variables, one for each in order.

    The cause becomes that of the variable with the largest of `numbers`, which is of the latest tensor: where a demand
    of an input and one of what follows contradict each other, the one that follows is told.
    """
    rows, factor = group.rows, group.coefficients[known]
    at, left = rows[known], ~known
    constants, magnitudes, causes = group.constants.copy(), group.magnitudes.copy(), group.causes.copy()
    np.subtract.at(constants, at, factor * solutions.constants)
    np.maximum.at(magnitudes, at, np.abs(factor) * solutions.magnitudes)
    latest = np.argsort(numbers, kind="stable")
    causes[at[latest]] = solutions.causes[latest]
    new = -np.repeat(factor, solutions.counts) * solutions.coefficients
    collected = _collect(
        len(constants),
        np.concatenate([rows[left], np.repeat(at, solutions.counts)]),
        np.concatenate([group.variables[left], solutions.variables]),
        np.concatenate([group.coefficients[left], new]),
    )
    return Equations(*collected, constants, magnitudes, causes)


def _places(starts: Ids, counts: Ids) -> Ids:
    """The places of all terms of equations, by where each begins and how many it has."""
    places: Ids = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    return places


def _collect(n: int, equation: Ids, variable: Ids, coefficient: Array) -> tuple[Ids, Ids, Array]:
    """Sort the terms by equation and variable, sum the coefficients of equal variables, and drop those that cancel.
    Returns how many terms each of the n equations has, and the variables and coefficients of all."""
    order = np.lexsort((variable, equation))
    equation, variable, coefficient = equation[order], variable[order], coefficient[order]
    if len(equation):
        start = np.flatnonzero(np.r_[True, (np.diff(equation) != 0) | (np.diff(variable) != 0)])
        size = np.maximum.reduceat(np.abs(coefficient), start)
        coefficient = np.add.reduceat(coefficient, start)
        keep = np.abs(coefficient) > RELATIVE_TOLERANCE * size
        equation, variable, coefficient = equation[start][keep], variable[start][keep], coefficient[keep]
    return np.bincount(equation, minlength=n), variable, coefficient
