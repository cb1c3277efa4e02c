"""Who goes first where queues of robots are equally long, as in rware.

rware leaves the choice to networkx, which takes the first of equals in the order of a component's
nodes. That order is the graph's where the component has at least half of its nodes, else that of a
Python set. Both depend on nothing but the cells, so that the same is chosen here by the same means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Cell = tuple[int, int]  # x, y


def first_robots(starts: Sequence[Cell], targets: Sequence[Cell]) -> dict[Cell, bool]:
    """Which robots go of all that are in queues before empty cells.

    Args:
        starts, targets: cells of all robots, in the order of their numbers.

    Returns:
        For the cell of every such robot, whether it goes.
    """
    nodes: dict[Cell, None] = {}  # in the order in which networkx meets them
    behind: dict[Cell, list[Cell]] = {}
    for start, target in zip(starts, targets, strict=True):
        nodes.setdefault(start)
        nodes.setdefault(target)
        behind.setdefault(target, []).append(start)
    ahead = dict(zip(starts, targets, strict=True))
    goes: dict[Cell, bool] = {}
    seen: set[Cell] = set()
    for node in nodes:
        if node in seen:
            continue
        component = _component(node, ahead, behind)
        seen |= component
        exits = [cell for cell in component if cell not in ahead]
        if exits:  # else it runs into a circle, or a robot that stays
            order = _node_order(component, nodes)
            goes |= dict.fromkeys(component - set(exits), False)
            goes |= dict.fromkeys(_longest_queue(exits[0], behind, order), True)
    return goes


def _component(start: Cell, ahead: dict[Cell, Cell], behind: dict[Cell, list[Cell]]) -> set[Cell]:
    """All cells connected with one, in a set filled in breadth-first order."""
    found = {start}
    level = [start]
    while level:
        following = []
        for cell in level:
            beside = [ahead[cell]] if cell in ahead else []
            for other in beside + behind.get(cell, []):
                if other not in found:
                    found.add(other)
                    following.append(other)
        level = following
    return found


def _node_order(component: set[Cell], nodes: Iterable[Cell]) -> dict[Cell, int]:
    """The place of each cell in networkx's copy of the component."""
    listed = list(nodes)
    copied: set[Cell] = set()
    for cell in component:  # not set(component), which would keep the table and with it the order
        copied.add(cell)
    if 2 * len(copied) < len(listed):
        listed = list(copied)
    return {cell: place for place, cell in enumerate(listed)}


def _longest_queue(
    cell: Cell, behind: dict[Cell, list[Cell]], order: dict[Cell, int]
) -> list[Cell]:
    """The cells of the longest queue before `cell`; the first in `order` where there are more."""

    def length(one: Cell) -> int:
        return 1 + max(map(length, behind.get(one, [])), default=-1)

    queue = []
    while behind.get(cell):
        cell = min(behind[cell], key=lambda one: (-length(one), order[one]))
        queue.append(cell)
    return queue
