"""The neighbourhood of a BatchNorm in the unfolded and in the folded graph, as the data of a small drawing.

It reaches through nodes without weights to the next ones with weights, nearest first. The folded graph's has the same
nodes, as far as they are there, and the nodes that are new beside them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import onnx_ir as ir

from fold.graph import display_name
from fold.inspection.placement import INPUT, OUTPUT, passes, tensors_read

HOPS = 4
MOST = 14
"""Nodes of a drawing."""

Member = ir.Node | ir.Value
"""A node, or an input or output of the graph."""
Role = Literal["batchnorm", "absorber", ""]


class DrawnNode(NamedTuple):
    """`rank` counts the nodes before it on the longest path. An `absorber` has weights that the BatchNorm is folded
    into."""

    name: str
    operator: str
    rank: int
    role: Role


@dataclass(frozen=True)
class Neighbourhood:
    """`edges` are pairs of indices of `nodes`: a tensor of the first is read by the second."""

    nodes: tuple[DrawnNode, ...]
    edges: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "nodes": [node._asdict() for node in self.nodes]}


class Surroundings:
    """The unfolded and the folded graph of BatchNorms. Nodes must have unique names."""

    def __init__(self, unfolded: ir.Model, folded: ir.Model) -> None:
        self._known = {node.name for node in unfolded.graph.all_nodes()}
        self._weights = folded.graph.initializers
        ends: list[Member] = [*folded.graph.inputs, *folded.graph.outputs]
        self._folded = {_key(member): member for member in (*folded.graph.all_nodes(), *ends)}

    def of(self, batchnorm: Sequence[ir.Node], into: Iterable[str]) -> tuple[Neighbourhood, Neighbourhood]:
        """That of a BatchNorm in the unfolded graph, and of its place in the folded one, whose initializers `into`
        names."""
        roles: dict[str | None, Role] = {
            user.name: "absorber"
            for name in into
            if (value := self._weights.get(name)) is not None
            for user, _ in value.uses()
        }
        roles |= {node.name: "batchnorm" for node in batchnorm}
        members = _around(batchnorm)
        return _drawn(members, roles), _drawn(self._in_folded(members), roles)

    def _in_folded(self, members: Sequence[Member]) -> list[Member]:
        """The same members in the folded graph, and the nodes beside them that the unfolded graph does not have."""
        keys = [key for member in members if (key := _key(member)) in self._folded]
        found = dict.fromkeys(self._folded[key] for key in keys)
        border = list(found)
        while border and len(found) < MOST:
            beside = [each for member in border for each in (*_read(member), *_readers(member)) if each not in found]
            new = [each for each in beside if isinstance(each, ir.Node) and each.name not in self._known]
            border = list(dict.fromkeys(new))
            found |= dict.fromkeys(border)
        return list(found)[:MOST]


def _around(batchnorm: Sequence[ir.Node]) -> list[Member]:
    found: dict[Member, None] = dict.fromkeys(batchnorm)
    before: list[Member] = list(batchnorm)
    behind: list[Member] = list(batchnorm)
    for _ in range(HOPS):
        before = [new for each in before if _goes_on(each, batchnorm) for new in _read(each) if new not in found]
        found |= dict.fromkeys(before)
        behind = [new for each in behind if _goes_on(each, batchnorm) for new in _readers(each) if new not in found]
        found |= dict.fromkeys(behind)
    return list(found)[:MOST]


def _goes_on(member: Member, batchnorm: Sequence[ir.Node]) -> bool:
    return isinstance(member, ir.Node) and (member in batchnorm or passes(member))


def _key(member: Member) -> tuple[bool, str | None]:
    return isinstance(member, ir.Node), member.name


def _read(member: Member) -> Iterator[Member]:
    """What writes the tensors that a member reads."""
    for value in tensors_read(member) if isinstance(member, ir.Node) else [member]:
        producer = value.producer()
        if producer is not None:
            yield producer
        elif value.is_graph_input() and value is not member:
            yield value


def _readers(member: Member) -> Iterator[Member]:
    for value in member.outputs if isinstance(member, ir.Node) else [member]:
        yield from (node for node, _ in value.uses())
        if value.is_graph_output() and value is not member:
            yield value


def _drawn(members: Collection[Member], roles: Mapping[str | None, Role]) -> Neighbourhood:
    places = {member: index for index, member in enumerate(members)}
    read = ((places.get(source), place) for member, place in places.items() for source in _read(member))
    edges = list(dict.fromkeys((source, place) for source, place in read if source is not None))
    ranks = [0] * len(places)
    for _ in members:
        for source, target in edges:
            ranks[target] = max(ranks[target], ranks[source] + 1)
    for place in range(len(ranks)):  # what nothing is drawn before stands right above its first reader
        readers = [ranks[target] for source, target in edges if source == place]
        if readers and all(target != place for _, target in edges):
            ranks[place] = min(readers) - 1
    nodes = [_node(member, rank, roles) for member, rank in zip(members, ranks, strict=True)]
    return Neighbourhood(tuple(nodes), tuple(edges))


def _node(member: Member, rank: int, roles: Mapping[str | None, Role]) -> DrawnNode:
    if isinstance(member, ir.Node):
        return DrawnNode(display_name(member), member.op_type, rank, roles.get(member.name, ""))
    return DrawnNode(member.name or "", OUTPUT if member.is_graph_output() else INPUT, rank, "")
