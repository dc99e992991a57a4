"""Must-link and cannot-link constraints, closed under transitivity.

If a and b must be alike, and b and c, then so must a and c; if c must differ from d, then so must
all three. Needs scipy, which the rest of the package does not: ``import pairloss.constraints``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pairloss._arguments import check_pair_list

try:
    import numpy as np
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components
except ImportError as error:
    raise ImportError("pairloss.constraints needs scipy: pip install scipy") from error

__all__ = ["Closure", "Contradiction", "ContradictionError", "close", "find_contradictions"]


class Contradiction(NamedTuple):
    """A cannot-link between two rows that must-links connect.

    Attributes:
        entry: which of the pairs it is.
        path: the rows from one end of it to the other, along a shortest chain of must-links.
        component_size: how many rows the must-links connect with these.
    """

    entry: int
    path: tuple[int, ...]
    component_size: int

    def __str__(self) -> str:
        chain = " = ".join(map(str, self.path))
        return (
            f"pairs[{self.entry}]: cannot-link of {self.path[0]} and {self.path[-1]}, but "
            f"must-links say {chain} (a component of {self.component_size} rows)"
        )


class ContradictionError(ValueError):
    """The constraints cannot all hold; ``contradictions`` has every cannot-link that is broken."""

    def __init__(self, contradictions: list[Contradiction]) -> None:
        self.contradictions = contradictions
        shown = [str(contradiction) for contradiction in contradictions[:5]]
        more = len(contradictions) - len(shown)
        if more > 0:
            shown.append(f"and {more} more")
        super().__init__("\n".join(shown))


class Closure(NamedTuple):
    """All that the constraints imply.

    Attributes:
        component: (N,) int64: rows with the same number must be alike. Numbered by first row.
        cannot_link: (C, 2) int64, sorted: pairs of components that must differ.
    """

    component: Tensor
    cannot_link: Tensor

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(E, 2) pairs i < j, sorted, and (E,) similar, for ``pair_kl_hinge_loss_from_pairs``.

        Every implied pair once: quadratic in the sizes of the components.
        """
        component = self.component.numpy()
        rows_of = np.split(np.argsort(component, kind="stable"), np.cumsum(np.bincount(component)))
        parts, kinds = [np.empty((0, 2), np.int64)], [np.empty(0, bool)]
        for rows in rows_of:
            first, second = np.triu_indices(len(rows), 1)
            parts.append(np.stack([rows[first], rows[second]], 1))
            kinds.append(np.ones(len(first), bool))
        for a, b in self.cannot_link.tolist():
            first, second = (x.ravel() for x in np.meshgrid(rows_of[a], rows_of[b]))
            parts.append(np.sort(np.stack([first, second], 1), axis=1))
            kinds.append(np.zeros(len(first), bool))
        pairs, similar = np.concatenate(parts), np.concatenate(kinds)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        return torch.from_numpy(pairs[order]), torch.from_numpy(similar[order])

    def similarity(self) -> Tensor:
        """(N, N) int8 in {1, 0 = unknown, -1}, for ``pair_kl_hinge_loss_from_similarity``."""
        components = int(self.component.max()) + 1 if len(self.component) else 0
        of_components = torch.eye(components, dtype=torch.int8, device="cpu")
        for a, b in ((0, 1), (1, 0)):
            of_components[self.cannot_link[:, a], self.cannot_link[:, b]] = -1
        return of_components[self.component][:, self.component]

    def labels(self, ignore_index: int = -100) -> Tensor:
        """(N,) labels for ``pair_kl_hinge_loss``; rows without constraint are ignored.

        Raises:
            ValueError: labels cannot say it: two components that have constraints may be alike or
                not, while different labels are always dissimilar.
        """
        sizes = torch.bincount(self.component)
        constrained = sizes > 1
        constrained[self.cannot_link.flatten()] = True
        known = torch.eye(len(sizes), dtype=torch.bool, device="cpu")
        for a, b in ((0, 1), (1, 0)):
            known[self.cannot_link[:, a], self.cannot_link[:, b]] = True
        unknown = ~known & constrained[:, None] & constrained
        if unknown.any():
            first = [int((self.component == c).nonzero()[0]) for c in unknown.nonzero()[0]]
            raise ValueError(
                f"labels: expected every two groups of rows to be cannot-linked, but nothing says "
                f"whether the group of row {first[0]} and that of row {first[1]} are alike; use "
                "pairs() or similarity()"
            )
        return torch.where(constrained[self.component], self.component, ignore_index)


def close(pairs: Tensor, similar: Tensor, rows: int) -> Closure:
    """Everything that must-links and cannot-links imply.

    Args:
        pairs: (E, 2), any integer dtype, on the CPU: two of the rows 0 .. ``rows`` - 1 each.
        similar: (E,) bool: True, must-link; False, cannot-link.
        rows: N.

    Raises:
        ContradictionError: a cannot-link joins two rows that must-links connect; see
            :func:`find_contradictions`.
    """
    edges, alike = _checked(pairs, similar, rows)
    component = _components(_graph(edges[alike], rows))
    if contradictions := _contradictions(edges, alike, component):
        raise ContradictionError(contradictions)
    cannot = np.sort(component[edges[~alike]], axis=1)
    return Closure(torch.from_numpy(component), torch.from_numpy(np.unique(cannot, axis=0)))


def find_contradictions(pairs: Tensor, similar: Tensor, rows: int) -> list[Contradiction]:
    """Every cannot-link that the must-links break, in the order of the list.

    The arguments are those of :func:`close`. Costs a search through the must-links for each.
    """
    edges, alike = _checked(pairs, similar, rows)
    return _contradictions(edges, alike, _components(_graph(edges[alike], rows)))


Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def _checked(pairs: Tensor, similar: Tensor, rows: int) -> tuple[Indices, Flags]:
    if isinstance(rows, bool) or not isinstance(rows, int):
        raise TypeError(f"rows: expected an int, got {type(rows).__name__}")
    if rows < 0:
        raise ValueError(f"rows: expected a value >= 0, got {rows}")
    if isinstance(pairs, Tensor) and pairs.device.type != "cpu":
        raise ValueError(f"pairs: expected the CPU, got {pairs.device}")
    inputs = check_pair_list(torch.empty(rows, 1, device="cpu"), pairs, similar)
    return inputs.pairs.numpy(), inputs.similar.numpy()


def _graph(must_link: Indices, rows: int) -> csr_array:
    ones = np.ones(len(must_link), np.int8)
    graph = csr_array((ones, (must_link[:, 0], must_link[:, 1])), shape=(rows, rows))
    graph.data[:] = 1  # several of one pair were added up, and may have wrapped around to 0
    return graph


def _components(graph: csr_array) -> Indices:
    """(N,), numbered in the order of their first rows."""
    _, component = connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    rank: Indices = np.argsort(np.argsort(first))
    return rank[inverse].astype(np.int64)


def _contradictions(edges: Indices, alike: Flags, component: Indices) -> list[Contradiction]:
    broken = np.flatnonzero(~alike & (component[edges[:, 0]] == component[edges[:, 1]]))
    if len(broken) == 0:
        return []
    graph, sizes = _graph(edges[alike], len(component)), np.bincount(component)
    result = []
    for entry in broken.tolist():
        start, end = edges[entry].tolist()
        _, before = breadth_first_order(graph, start, directed=False)
        path = [end]
        while path[-1] != start:
            path.append(int(before[path[-1]]))
        result.append(Contradiction(entry, tuple(reversed(path)), int(sizes[component[start]])))
    return result
