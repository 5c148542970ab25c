"""The two solvers beneath the gauges, against linear algebra on random systems, and exact rationals."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fold.engine.solver.scales import Scales
from fold.engine.solver.shifts import Shifts

VARIABLES = 9


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


@st.composite
def ratio_groups(draw):
    """Groups of relations p_x = r p_y; consistent ones come from hidden values, wrong ones from a changed ratio."""
    hidden = np.array(
        draw(st.lists(st.sampled_from([1.0, -1.0, 2.0, -0.5, 3.0]), min_size=VARIABLES, max_size=VARIABLES))
    )
    groups = []
    for _ in range(draw(st.integers(1, 8))):
        pairs = draw(
            st.lists(st.tuples(st.integers(0, VARIABLES - 1), st.integers(0, VARIABLES - 1)), min_size=1, max_size=4)
        )
        x, y = (np.array(side, dtype=np.int64) for side in zip(*pairs, strict=True))
        ratio = hidden[x] / hidden[y]
        if draw(st.booleans()):
            ratio[draw(st.integers(0, len(ratio) - 1))] *= draw(st.sampled_from([-1.0, 1.5]))
        groups.append((x, y, ratio))
    return groups


@settings(max_examples=150, deadline=None)
@given(
    ratio_groups(),
    st.lists(st.integers(0, VARIABLES - 1), max_size=3),
    st.lists(st.integers(0, VARIABLES - 1), max_size=3),
)
def test_relations_hold_or_leave_no_trace(groups, fixed, positive) -> None:
    scales = Scales(np.zeros(VARIABLES, np.int64))
    if fixed:
        scales.fix(np.array(fixed), 0)
    if positive:
        scales.hold_positive(np.array(positive), 1)
    rows: list[np.ndarray] = []
    for cause, (x, y, ratio) in enumerate(groups, start=2):
        conflict = scales.relate(x, y, ratio, cause)
        possible = _satisfiable([*rows, (x, y, ratio)], fixed, positive)
        assert (conflict is None) == possible
        if conflict is None:
            rows.append((x, y, ratio))
        p = scales.values(ids())
        for a, b, r in rows:
            np.testing.assert_allclose(p[a], r * p[b], rtol=1e-12)
        assert (p[fixed] == 1).all()
        assert (p[positive] > 0).all()


def _satisfiable(rows, fixed, positive) -> bool:
    """By flooding: follow every relation from one variable of each connected part."""
    neighbours = [[] for _ in range(VARIABLES)]
    for x, y, ratio in rows:
        for a, b, r in zip(x, y, ratio, strict=True):
            neighbours[a].append((b, 1 / r))
            neighbours[b].append((a, r))
    value = np.full(VARIABLES, np.nan)
    for start in range(VARIABLES):
        if not np.isnan(value[start]):
            continue
        value[start], stack, part = 1.0, [start], [start]
        while stack:
            a = stack.pop()
            for b, r in neighbours[a]:
                if np.isnan(value[b]):
                    value[b] = r * value[a]
                    stack.append(b)
                    part.append(b)
                elif abs(value[b] / (r * value[a]) - 1) > 1e-9:
                    return False
        pinned = [value[i] for i in part if i in fixed]
        signs = {np.sign(value[i]) for i in part if i in positive or i in fixed}
        if len(signs) > 1 or (pinned and max(pinned) - min(pinned) > 1e-9):
            return False
    return True


def test_a_channel_is_dead_only_where_nobody_else_reads_it() -> None:
    reads = np.array([1, 2, 1, 1, 0])
    scales = Scales(reads)
    assert scales.relate(ids(0), ids(4), np.array([0.0]), 0) is None
    assert scales.values(ids(4))[0] == 0
    conflict = scales.relate(ids(1), ids(4), np.array([0.0]), 0)
    assert conflict is not None
    assert conflict.dead
    scales.fix(ids(2), 7)
    assert scales.relate(ids(2), ids(4), np.array([0.0]), 0).cause == 7
    assert scales.relate(ids(3, 3), ids(4, 4), np.array([0.0, 2.0]), 0).dead
    assert scales.relate(ids(0), ids(3), np.array([2.0]), 0) is not None  # it was given up already


def test_an_anchored_class_stays_as_it_is() -> None:
    scales = Scales(np.zeros(4, np.int64))
    scales.relate(ids(0, 1), ids(2, 3), np.array([3.7, -0.2]), 0)
    np.testing.assert_array_equal(scales.values(ids(2, 3)), [3.7, -0.2, 1, 1])


@st.composite
def shift_groups(draw):
    """Groups of sparse equations; consistent ones come from hidden values, wrong ones from a changed constant."""
    hidden = np.array(draw(st.lists(st.integers(-4, 4), min_size=VARIABLES, max_size=VARIABLES)), float)
    groups = []
    for _ in range(draw(st.integers(1, 7))):
        n, terms = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        variables = np.array(
            draw(st.lists(st.integers(0, VARIABLES - 1), min_size=n * terms, max_size=n * terms))
        ).reshape(terms, n)
        factors = draw(st.lists(st.sampled_from([1.0, -1.0, 2.0]), min_size=terms, max_size=terms))
        constants = np.einsum("t,tn->n", factors, hidden[variables])
        if draw(st.booleans()):
            constants[0] += 1
        groups.append((factors, variables, constants))
    return groups


@settings(max_examples=150, deadline=None)
@given(shift_groups(), st.lists(st.integers(0, 2), min_size=VARIABLES, max_size=VARIABLES))
def test_shifts_are_those_of_exact_elimination(groups, preference) -> None:
    """Contradicting groups leave no trace; every value is exact, so the same variables are free."""
    shifts = Shifts(np.array(preference))
    order = sorted(range(VARIABLES), key=lambda variable: (-preference[variable], variable))
    rows: list[list[Fraction]] = []
    for cause, (factors, variables, constants) in enumerate(groups):
        new = [[Fraction(0)] * VARIABLES + [Fraction(constant)] for constant in constants]
        for factor, ids_of_term in zip(factors, variables, strict=True):
            for row, variable in zip(new, ids_of_term, strict=True):
                row[order.index(variable)] += Fraction(factor)
        conflict = shifts.add(list(zip(factors, variables, strict=True)), constants, cause)
        reduced = _row_echelon([*rows, *new])
        consistent = all(any(row[:-1]) for row in reduced)
        assert (conflict is None) == consistent
        if conflict is not None:
            assert 0 <= conflict.position < len(constants)
        else:
            rows = reduced
        exact = np.zeros(VARIABLES)
        for row in rows:
            exact[order[_lead(row)]] = row[-1]
        np.testing.assert_allclose(shifts.values(), exact, rtol=1e-12, atol=1e-12)


def _row_echelon(rows: list[list[Fraction]]) -> list[list[Fraction]]:
    """The reduced row echelon form, in which free variables may be 0; a row of zeros but for its last is a conflict."""
    done: list[list[Fraction]] = []
    for added in rows:
        row = added
        for other in done:
            row = _without(row, other, _lead(other))
        if any(row):
            at = _lead(row)
            row = [factor / row[at] for factor in row]
            done = [*(_without(other, row, at) for other in done), row]
    return done


def _lead(row: list[Fraction]) -> int:
    return next(at for at, factor in enumerate(row) if factor)


def _without(row: list[Fraction], other: list[Fraction], at: int) -> list[Fraction]:
    """The row with as much of the other subtracted that it is 0 at that place, where the other is 1."""
    return [a - row[at] * b for a, b in zip(row, other, strict=True)]


LINKS = 20_000
LINKED = {
    "all equal the first": (np.zeros(LINKS, np.int64), np.arange(1, LINKS + 1)),
    "all equal the last": (np.arange(LINKS), np.full(LINKS, LINKS)),
    "each equals the next": (np.arange(LINKS), np.arange(1, LINKS + 1)),
    "a random tree": (np.random.default_rng(0).integers(0, np.arange(1, LINKS + 1)), np.arange(1, LINKS + 1)),
}


@pytest.mark.parametrize("shape", LINKED)
def test_many_equations_that_share_variables(shape: str) -> None:
    """`q_a - q_b` is known for 20,000 pairs that connect 20,001 variables: each follows from the last, which is 0."""
    a, b = LINKED[shape]
    shuffled = np.random.default_rng(1).permutation(LINKS)
    a, b = a[shuffled], b[shuffled]
    expected = np.random.default_rng(2).integers(-8, 8, LINKS + 1).astype(float)
    expected[-1] = 0
    shifts = Shifts(np.zeros(LINKS + 1, np.int64))
    assert shifts.add([(1.0, a), (-1.0, b)], expected[a] - expected[b], 0) is None
    np.testing.assert_array_equal(shifts.values(), expected)
    wrong = expected[a] - expected[b] + (np.arange(LINKS) == 5)
    conflict = shifts.add([(2.0, a), (-2.0, b)], 2 * wrong, 1)
    assert conflict is not None
    assert (conflict.position, conflict.cause) == (5, 0)
    np.testing.assert_array_equal(shifts.values(), expected)


def test_sums_of_rows_and_columns_stay_short() -> None:
    """`out[i, j] = a[i] + b[j] + t`, as of a relative position: equations of three variables."""
    side = 12
    a, b, out = np.arange(side), side + np.arange(side), 2 * side + np.arange(side * side)
    rows, columns = np.repeat(a, side), np.tile(b, side)
    t = np.random.default_rng(0).integers(-8, 8, side * side).astype(float)
    shifts = Shifts(np.r_[np.ones(2 * side, np.int64), np.zeros(side * side, np.int64)])
    equations = [(1.0, out), (-1.0, rows), (-1.0, columns)]
    assert shifts.add(equations, t, 0) is None
    q = shifts.values()
    np.testing.assert_array_equal(q[out] - q[rows] - q[columns], t)
    assert shifts.add([(1.0, out[1:]), (-1.0, np.full(len(out) - 1, out[0]))], np.zeros(len(out) - 1), 1) is not None
    np.testing.assert_array_equal(shifts.values(), q)


def test_the_preferred_variable_moves() -> None:
    shifts = Shifts(np.array([0, 2, 0]))
    shifts.add([(1.0, ids(0)), (-1.0, ids(1)), (-1.0, ids(2))], np.array([5.0]), 0)
    np.testing.assert_array_equal(shifts.values(), [0, -5, 0])
