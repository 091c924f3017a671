"""Pairs of 64-bit hashes that differ in a few bits, found without comparing all pairs."""

from itertools import combinations, pairwise

import numpy as np

BITS = 64


def pairs_within(hashes: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds all pairs of hashes with at most a certain Hamming distance, by multi-index hashing.

    The 64 bits are divided into `max_distance` + 2 blocks. Two hashes within the distance agree in at least two blocks,
    so only hashes that share two blocks are compared (M. Norouzi, A. Punjani and D. J. Fleet, arXiv:1307.2982).

    Args:
        hashes: uint64 (n,), in any order; equal ones are pairs as well.
        max_distance: The largest distance, 0 to 30 bits.

    Returns:
        The positions of the first and of the second hash of each pair, int64, first < second, each pair once, sorted.
    """
    edges = np.linspace(0, BITS, max_distance + 3).round().astype(int)
    blocks = [((1 << int(high)) - 1) ^ ((1 << int(low)) - 1) for low, high in pairwise(edges)]
    found = [np.empty((0, 2), "int64")]
    for first, second in combinations(blocks, 2):
        keys = hashes & np.uint64(first | second)
        order = np.argsort(keys, kind="stable")
        keys, at, step = keys[order], np.arange(len(keys)), 1
        while len(at := at[: np.searchsorted(at, len(keys) - step)]):  # compare with the next, the next but one …
            at = at[keys[at] == keys[at + step]]
            a, b = order[at], order[at + step]
            is_close = np.bitwise_count(hashes[a] ^ hashes[b]) <= max_distance
            found.append(np.sort(np.stack([a[is_close], b[is_close]], axis=1), axis=1))
            step += 1
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]
