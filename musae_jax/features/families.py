"""Features that fire together: families by co-activation over clips."""

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph


def cofiring(fires: np.ndarray) -> np.ndarray:
    """Phi (Pearson's r of yes and no) of every pair of features over clips: bool [n, F] -> float32 [F, F]."""
    told = fires.astype(np.float32)
    told -= told.mean(0)
    spread = np.sqrt((told**2).sum(0))
    return (told.T @ told) / np.maximum(np.outer(spread, spread), 1e-9)


def families(fires: np.ndarray, least: float = 0.6) -> np.ndarray:
    """The family of each feature: int [F], largest family 0; -1 for those that fire with no other.

    A feature belongs with its closest companion if their phi is at least `least` and it is the closest for one of them;
    families are what these bonds connect, so they do not grow into one by chains of weak ones.
    """
    if not fires.shape[1]:
        return np.zeros(0, int)
    phi = cofiring(fires).round(5)  # equal ones are equal, whatever the order in which they were summed
    np.fill_diagonal(phi, -1)
    closest = phi.argmax(1)
    strength = phi[np.arange(len(phi)), closest]
    bonds = np.flatnonzero(strength >= least)
    graph = scipy.sparse.coo_array((np.ones(len(bonds)), (bonds, closest[bonds])), shape=phi.shape)
    _, group = scipy.sparse.csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(group)
    by_size = np.argsort(-sizes, kind="stable")
    rank = np.empty_like(by_size)
    rank[by_size] = np.arange(len(by_size))
    return np.where(sizes[group] > 1, rank[group], -1)
