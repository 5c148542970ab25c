"""The two solvers beneath the gauges, against dense linear algebra on random systems."""

import numpy as np
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
def test_equations_hold_or_leave_no_trace(groups, preference) -> None:
    shifts = Shifts(np.array(preference))
    matrix, right = np.zeros((0, VARIABLES)), np.zeros(0)
    for cause, (factors, variables, constants) in enumerate(groups):
        new = np.zeros((len(constants), VARIABLES))
        for factor, row in zip(factors, variables, strict=True):
            np.add.at(new, (np.arange(len(constants)), row), factor)
        conflict = shifts.add(list(zip(factors, variables, strict=True)), constants, cause)
        both, wanted = np.vstack([matrix, new]), np.r_[right, constants]
        consistent = np.linalg.matrix_rank(both) == np.linalg.matrix_rank(np.c_[both, wanted])
        assert (conflict is None) == consistent
        if consistent:
            matrix, right = both, wanted
        np.testing.assert_allclose(matrix @ shifts.values(), right, atol=1e-9)


def test_the_preferred_variable_moves() -> None:
    shifts = Shifts(np.array([0, 2, 0]))
    shifts.add([(1.0, ids(0)), (-1.0, ids(1)), (-1.0, ids(2))], np.array([5.0]), 0)
    np.testing.assert_array_equal(shifts.values(), [0, -5, 0])
