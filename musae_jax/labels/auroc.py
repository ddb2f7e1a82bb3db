"""Area under the ROC curve of every feature for every concept at once, by ranks.

AUROC is the chance that a frame (or clip) with the concept has a higher activation than one without, ties counting one
half (Mann and Whitney's U over n1·n0). Ranks do not depend on the concept, so they are computed once and each set of
concepts, real or shuffled, costs one matrix product. The zeros of a sparse activation are one big tie: only what is
not zero is ranked.
"""

from typing import Any

import flax.struct
import numpy as np
import scipy.sparse


@flax.struct.dataclass
class Ranks:
    """Mid-ranks over N rows, minus (N + 1)/2 and divided by N, so that they lie in −½…½ and sum to 0 per feature.

    `above` [N, F] holds the rank less the rank of a zero (sparse input, CSC) or the rank itself (dense input); `zero`
    [F] is the rank that all zeros share (0 for dense input).
    """

    above: Any
    zero: np.ndarray


def rank(values: Any) -> Ranks:
    """Ranks of `values` [N, F], sparse or dense, within each feature; ties share their mean rank. NaN is refused."""
    rows = values.shape[0]
    if not scipy.sparse.issparse(values):
        values = np.asarray(values)
        if np.isnan(values).any():
            raise ValueError("activations hold NaN")
        ranks = np.empty(values.shape, np.float32)
        for feature in range(values.shape[1]):  # one column at a time keeps the sort in cache
            ranks[:, feature] = (_mid_ranks(np.ascontiguousarray(values[:, feature])) - (rows + 1) / 2) / rows
        return Ranks(ranks, np.zeros(values.shape[1]))

    columns = scipy.sparse.csc_array(values, copy=True)
    columns.eliminate_zeros()
    data, starts = columns.data, columns.indptr
    if np.isnan(data).any():
        raise ValueError("activations hold NaN")
    counts = np.diff(starts)
    column = np.repeat(np.arange(columns.shape[1]), counts)
    order = np.lexsort((data, column))
    ordered = data[order]
    # mid-rank of a run of equal values within a column: the mean of its first and last place, counted from 1
    new = np.ones(len(data), bool)
    new[1:] = (ordered[1:] != ordered[:-1]) | (column[1:] != column[:-1])
    run = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(data)) - 1
    place = ((first + last) / 2)[run] - starts[column] + 1 if len(data) else np.zeros(0)
    zeros = rows - counts
    negative = np.bincount(column, data < 0, minlength=columns.shape[1])
    place = place + np.where(ordered > 0, zeros[column], 0)  # the zeros lie between negative and positive values
    middle = (rows + 1) / 2
    zero = np.where(zeros > 0, negative + (zeros + 1) / 2, middle)  # no zeros: measure from the middle instead
    columns.data = np.empty(len(data))
    columns.data[order] = (place - zero[column]) / rows
    return Ranks(columns, (zero - middle) / rows)


def _mid_ranks(column: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean; as scipy's `rankdata`, but with the unstable, faster sort."""
    order = np.argsort(column)
    ordered = column[order]
    new = np.append(True, ordered[1:] != ordered[:-1])
    first = np.append(np.flatnonzero(new), len(column))
    ranks = np.empty(len(column))
    ranks[order] = ((first[:-1] + first[1:] + 1) / 2)[np.cumsum(new) - 1]
    return ranks


def auroc_from_ranks(ranks: Ranks, truth: np.ndarray) -> np.ndarray:
    """AUROC [F, C] of features ranked over N rows for `truth` bool [N, C]; NaN where a concept is always or never."""
    truth = np.asarray(truth)
    sparse = scipy.sparse.issparse(ranks.above)
    positives = truth.sum(0, dtype=np.float64)  # [C]
    weights = np.ascontiguousarray(truth, np.float64 if sparse else np.float32)
    sums = np.asarray(ranks.above.T @ weights, np.float64) + np.outer(ranks.zero, positives)  # [F, C]
    pairs = positives * (len(truth) - positives)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = 0.5 + sums * (len(truth) / pairs)
    scores[:, pairs == 0] = np.nan
    return scores


def auroc(values: Any, truth: np.ndarray) -> np.ndarray:
    """AUROC [F, C] of `values` [N, F] (scipy sparse or NumPy) for the concepts `truth` bool [N, C].

    Directional: above ½ when a high activation goes with the concept. NaN where a concept is always or never true.
    """
    if len(truth) != values.shape[0]:
        raise ValueError(f"values have {values.shape[0]} rows, truth has {len(truth)}")
    return auroc_from_ranks(rank(values), truth)
