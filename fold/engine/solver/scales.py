"""The scales of all gauges: a weighted union-find over channels, with fixed values, signs and zeros.

Every channel of every tensor has a variable p. `relate` adds `p_x = ratio * p_y`; a class contains all variables that
are known up to one common factor. A class can be fixed to a value (a graph input is carried as it is), restricted to a
sign (a ReLU allows only positive scales), or zero (a dead channel, which only its BatchNorm reads).

Everything works on arrays of variables, thousands at a time. A group of relations is added as a whole or not at all: it
is tried on a copy of the few roots that it touches, and written back if nothing contradicts.
"""

import numpy as np
from numpy.typing import NDArray

from fold.engine.affine import NO_CAUSE, Array, Conflict, Ids

RELATIVE_TOLERANCE = 1e-13
"""Two ways to compute one ratio differ by rounding, a few 1e-16; two different ratios of float32 parameters by 1e-8."""

_VARIABLE = np.dtype(
    [
        ("parent", np.int64),
        ("weight", np.float64),  # p_x = weight * p_parent
        ("link_cause", np.int64),  # of the link to the parent; for a root, of its first link to a child
        # the following fields are valid for roots
        ("value", np.float64),  # p of the root, nan where it is free
        ("value_cause", np.int64),
        ("sign", np.int8),  # the sign that p of the root must have, 0 where it is free
        ("sign_cause", np.int64),
        ("zero", np.bool_),
        ("reads", np.int64),  # number of nodes that divide by p of a member
        ("members", np.int64),
    ]
)


class Scales:
    """`reads[x]` counts the nodes with parameters, also BatchNorms, that divide by p of variable x."""

    def __init__(self, reads: Ids) -> None:
        self._state = np.zeros(len(reads), _VARIABLE)
        self._state["parent"] = np.arange(len(reads))
        self._state["weight"] = self._state["members"] = 1
        self._state["value"] = np.nan
        self._state["reads"] = reads
        for cause in ("link_cause", "value_cause", "sign_cause"):
            self._state[cause] = NO_CAUSE

    def find(self, x: Ids) -> tuple[Ids, Array]:
        """Root of each variable, and the weight w with `p_x = w * p_root`."""
        return _find(self._state, x)

    def fix(self, x: Ids, cause: int) -> None:
        """`p_x = 1`. Only before any relation with a ratio other than 1, so it cannot contradict."""
        root, _ = self.find(x)
        self._state["value"][root] = 1
        self._state["value_cause"][root] = cause

    def hold_positive(self, x: Ids, cause: int) -> None:
        """`p_x > 0`. Only before any relation with a ratio other than 1, so it cannot contradict."""
        root, _ = self.find(x)
        self._state["sign"][root] = 1
        self._state["sign_cause"][root] = cause

    def relate(self, x: Ids, y: Ids, ratio: Array, cause: int) -> Conflict | None:
        """Add `p_x = ratio * p_y` for every position of three arrays of shape [n], or for none; returns the conflict.

        A ratio of 0 makes `p_x = 0`. This is possible where only the node that adds the relation reads the class of x.
        """
        rx, wx = self.find(x)
        ry, wy = self.find(y)
        roots, local = np.unique(np.concatenate([rx, ry]), return_inverse=True)
        lx, ly = local[: len(x)], local[len(x) :]
        part = self._state[roots]
        part["parent"] = np.arange(len(roots))
        dead = ratio == 0
        conflict = _set_zero(part, lx, ly, dead)
        if conflict is None:
            alive = np.flatnonzero(~dead)
            factor = ratio[alive] * wy[alive] / wx[alive]
            conflict = _link(part, lx[alive], ly[alive], factor, alive, cause)
        if conflict is not None:
            if conflict.cause == NO_CAUSE:  # two paths contradict each other: use the cause of a link of one
                at = conflict.position
                paths = (self._state["link_cause"][ids[at]] for ids in (x, y))
                conflict = Conflict(
                    at, next((int(c) for c in paths if c not in (NO_CAUSE, cause)), NO_CAUSE), conflict.dead
                )
            return conflict
        part["parent"] = roots[part["parent"]]
        self._state[roots] = part
        for ids in (x, y):  # path compression
            root, weight = self.find(ids)
            self._state["parent"][ids] = root
            self._state["weight"][ids] = weight
        return None

    def unbound(self, x: Ids) -> NDArray[np.bool_]:
        """Which variables have no relation, no value and no sign."""
        root, _ = self.find(x)
        held = self._state[root]
        alone: NDArray[np.bool_] = (held["members"] == 1) & (held["sign"] == 0) & ~held["zero"]
        alone &= np.isnan(held["value"])
        return alone

    def exclude(self, x: Ids) -> None:
        """Refuse every further relation with these variables."""
        self._state["zero"][x] = True

    def release(self, x: Ids) -> None:
        """Note that the node that added a relation on x is removed and no longer reads x."""
        root, _ = self.find(x)
        np.subtract.at(self._state["reads"], root, 1)

    def values(self, anchors: Ids) -> Array:
        """p of every variable. A free class gets the factor that makes its anchors 1. Where anchors differ, their
        geometric mean becomes 1, to the next power of two, so that no tensor is scaled more than the others.

        In a class without anchors and without a fixed value the root is 1.
        """
        root, weight = self.find(np.arange(len(self._state)))
        state = self._state
        count = len(state)
        unit = np.ones(count)  # p of a root is sign/unit
        anchor_root = root[anchors]
        unit[anchor_root[::-1]] = np.abs(weight[anchors[::-1]])  # the first anchor of a class counts
        spread = np.log2(np.abs(weight[anchors]) / unit[anchor_root])
        number = np.bincount(anchor_root, minlength=count)
        mean = np.bincount(anchor_root, spread, minlength=count) / np.maximum(number, 1)
        sign = np.where(state["sign"] == 0, 1, state["sign"]).astype(np.float64)
        free = state["sign"][anchor_root] == 0
        sign[anchor_root[free][::-1]] = np.sign(weight[anchors[free][::-1]])
        p = sign[root] * weight / unit[root] * np.exp2(-np.round(mean))[root]
        fixed = ~np.isnan(state["value"][root])
        p[fixed] = (weight * state["value"][root])[fixed]
        p[state["zero"][root]] = 0
        return p


def _find(state: NDArray[np.void], x: Ids) -> tuple[Ids, Array]:
    root, weight = x, np.ones(x.shape)
    while True:
        up = state["parent"][root]
        if np.array_equal(up, root):
            return root, weight
        weight = weight * state["weight"][root]
        root = up


def _set_zero(part: NDArray[np.void], x: Ids, y: Ids, dead: NDArray[np.bool_]) -> Conflict | None:
    """Mark the classes of dead channels as zero, unless another node reads them or they have a value or sign."""
    if not dead.any():
        return None
    uses = np.bincount(np.concatenate([x, y[~dead]]), minlength=len(part))
    held = part[x]
    refused = dead & (
        (uses[x] > 1) | (held["reads"] > 1) | (held["sign"] != 0) | ~np.isnan(held["value"]) | held["zero"]
    )
    if refused.any():
        at = int(np.flatnonzero(refused)[0])
        causes = (held["value_cause"][at], held["sign_cause"][at])
        return Conflict(at, next((int(c) for c in causes if c != NO_CAUSE), NO_CAUSE), dead=True)
    part["zero"][x[dead]] = True
    return None


def _link(part: NDArray[np.void], x: Ids, y: Ids, ratio: Array, position: Ids, cause: int) -> Conflict | None:
    """Union the roots of x and y with `p_x = ratio * p_y`, in rounds. In a round no root is both child and parent."""
    while len(x):
        a, wa = _find(part, x)
        b, wb = _find(part, y)
        factor = ratio * wb / wa  # p_a = factor * p_b
        same = a == b
        wrong = same & (np.abs(factor - 1) > RELATIVE_TOLERANCE)
        if wrong.any():
            return Conflict(int(position[wrong][0]), NO_CAUSE)
        size_a, size_b = part["members"][a], part["members"][b]
        under = (size_a < size_b) | ((size_a == size_b) & (a < b))  # union by size
        child, parent = np.where(under, a, b), np.where(under, b, a)
        factor = np.where(under, factor, 1 / factor)
        _, first = np.unique(child, return_index=True)
        now = first[~same[first]]
        now = now[~np.isin(parent[now], child[now])]
        conflict = _merge(part, child[now], parent[now], factor[now], position[now], cause)
        if conflict is not None:
            return conflict
        left = ~same
        left[now] = False
        x, y, ratio, position = x[left], y[left], ratio[left], position[left]
    return None


def _merge(
    part: NDArray[np.void], child: Ids, parent: Ids, factor: Array, position: Ids, cause: int
) -> Conflict | None:
    """Link each child to its parent with `p_child = factor * p_parent`, and pass its value and sign to the parent."""

    def refuse(where: NDArray[np.bool_], causes: Ids) -> Conflict | None:
        return Conflict(int(position[where][0]), int(causes[where][0])) if where.any() else None

    kids = part[child]
    conflict = refuse(kids["zero"] | part["zero"][parent], np.full(len(child), NO_CAUSE))
    if conflict is not None:
        return conflict
    sign = kids["sign"] * np.sign(factor).astype(np.int8)
    value = kids["value"] / factor
    signed, fixed = sign != 0, ~np.isnan(value)
    for name, held, new in (("sign", signed, sign), ("value", fixed, value)):
        empty = held & ((part[name][parent] == 0) | np.isnan(part[name][parent]))
        part[name][parent[empty]] = new[empty]
        part[f"{name}_cause"][parent[empty]] = kids[f"{name}_cause"][empty]
    up = part[parent]
    conflict = refuse(signed & (up["sign"] != sign), kids["sign_cause"])
    conflict = conflict or refuse(fixed & (np.abs(value / up["value"] - 1) > RELATIVE_TOLERANCE), kids["value_cause"])
    contrary = (up["sign"] != 0) & ~np.isnan(up["value"]) & (np.sign(up["value"]) != up["sign"])
    conflict = conflict or refuse(contrary, up["sign_cause"])
    if conflict is not None:
        return conflict
    part["parent"][child] = parent
    part["weight"][child] = factor
    part["link_cause"][child] = cause
    alone = parent[part["link_cause"][parent] == NO_CAUSE]
    part["link_cause"][alone] = cause
    np.add.at(part["reads"], parent, kids["reads"])
    np.add.at(part["members"], parent, kids["members"])
    return None
