"""Rows that are nearly the same: small signatures of their tokens, and the pairs whose signatures agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

SHINGLE = 5
"""Neighbouring tokens that are compared as one."""

SLOTS = 64
"""Numbers of a signature."""

_NONE = np.uint32(0xFFFFFFFF)
_BLOCK = 1 << 16
"""Tokens, and rows, that are worked on together: their tables stay in a processor's cache."""
_SURE = 0.99
# Odd numbers without a pattern: the digits of the golden ratio and of two roots.
_WEIGHTS = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F], np.uint64
)


def signatures(ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """MinHash signatures of rows of tokens: two rows agree in about that share of the slots that their shingles share.

    One-permutation hashing (Li, Owen and Zhang 2012): every shingle of `SHINGLE` tokens has one hash, whose upper bits
    say which slot it is for, and the slot keeps the smallest. A slot that no shingle fell into takes the number of
    another, the first that is filled in an order of its own (the densification of Shrivastava 2017), so that short rows
    are compared as fairly as long ones. Order within a row counts inside a shingle alone, and repetitions do not count.
    The numbers are the same on every machine.

    Args:
        ids: the tokens of all rows, one row after another, int32 of shape (tokens,).
        starts: where each row begins, and where the last one ends, int64 of shape (rows + 1,).

    Returns:
        uint32 of shape (rows, SLOTS). A row shorter than a shingle is one shingle; an empty row has 0xFFFFFFFF
        everywhere, which no other row has.
    """
    ids, starts = np.asarray(ids), np.asarray(starts, np.int64)
    found = np.full((len(starts) - 1, SLOTS), _NONE, np.uint32)
    for first in range(int(starts[0]), int(starts[-1]), _BLOCK):
        _take_shingles(found, ids, starts, first, min(first + _BLOCK, int(starts[-1])))
    orders = _orders()
    for first in range(0, len(found), _BLOCK // SLOTS):
        _fill(found[first : first + _BLOCK // SLOTS], orders)
    return found


def _take_shingles(found: np.ndarray, ids: np.ndarray, starts: np.ndarray, first: int, last: int) -> None:
    """Lower the slots of `found` (rows, SLOTS) by the shingles that begin at the tokens from `first` to before `last`."""
    # What stands beyond a row's end counts as 0, which is no token: [7] and [7, 0] differ.
    tokens = ids[first : last + SHINGLE - 1].astype(np.uint64) + np.uint64(1)
    rows = np.arange(np.searchsorted(starts, first, "right") - 1, np.searchsorted(starts, last, "left"))
    begins, ends = starts[rows], starts[rows + 1]
    counts = np.minimum(ends, last) - np.maximum(begins, first)
    row = np.repeat(rows, counts)
    hashes = tokens[: last - first] * _WEIGHTS[0]
    for place in range(1, SHINGLE):
        shifted = tokens[place : place + last - first]
        hashes[: len(shifted)] += shifted * _WEIGHTS[place]
    # A shingle that would reach beyond its row is none, unless the row is shorter than a shingle.
    is_whole = np.ones(last - first, bool)
    for place in range(1, SHINGLE):
        at = ends - place
        is_whole[at[(at >= np.maximum(begins, first)) & (at < last)] - first] = False
    short = (ends - begins < SHINGLE) & (begins >= first) & (ends > begins)
    at, lengths = begins[short] - first, (ends - begins)[short]
    hashes[at] = tokens[at] * _WEIGHTS[0]
    for place in range(1, SHINGLE - 1):
        longer = at[lengths > place]
        hashes[longer] += tokens[longer + place] * _WEIGHTS[place]
    is_whole[at] = True
    hashes, row = _mix(hashes[is_whole]), row[is_whole]
    slots = ((hashes >> np.uint64(32)) * np.uint64(SLOTS)) >> np.uint64(32)
    values = np.minimum((hashes & np.uint64(0xFFFFFFFF)).astype(np.uint32), _NONE - np.uint32(1))
    np.minimum.at(found.reshape(-1), row * SLOTS + slots.astype(np.int64), values)


def _mix(hashes: np.ndarray) -> np.ndarray:
    """Every bit of the result hangs on every bit of the number (the end of SplitMix64); works in place."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= _WEIGHTS[1]
    hashes ^= hashes >> np.uint64(27)
    hashes *= _WEIGHTS[2]
    hashes ^= hashes >> np.uint64(31)
    return hashes


def _orders() -> np.ndarray:
    """For each slot the others in an order of its own: (SLOTS - 1, SLOTS)."""
    numbers = _mix(np.arange(1, SLOTS * SLOTS + 1, dtype=np.uint64) * _WEIGHTS[0]).reshape(SLOTS, SLOTS)
    orders = np.argsort(numbers, axis=1, kind="stable")
    return np.ascontiguousarray(orders[orders != np.arange(SLOTS)[:, None]].reshape(SLOTS, SLOTS - 1).T)


def _fill(found: np.ndarray, orders: np.ndarray) -> None:
    """Give every empty slot of some rows (rows, SLOTS) the number of the first filled one in its order."""
    flat, given = found.reshape(-1), found.flatten()
    empty = np.flatnonzero(given == _NONE)
    slots = empty % SLOTS
    for attempt in range(SLOTS - 1):
        if not len(empty):
            return
        values = given[empty - slots + orders[attempt][slots]]
        flat[empty] = values
        missing = values == _NONE
        empty, slots = empty[missing], slots[missing]


def find_pairs(signatures: np.ndarray, threshold: float = 0.8) -> np.ndarray:
    """Rows that resemble one before them: (earlier row, later row), each later row once, with the first that was found.

    Locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998): the slots are cut into bands, rows that are equal in
    a whole band are looked at, each with the first row and with the one before it that has this band, and are a pair when
    all slots together allow it. So the cost grows with the rows and not with the pairs, however many are alike.

    How alike two rows are is known by as many samples as there are slots. Pairs are those that agree in `threshold` of
    them, less one standard deviation: of 64 slots and 0.8, in 48, with 12 bands of 5. Two rows of similarity 0.8 meet in a
    band with a probability of 0.991, and of 0.9 with 0.9999. All in all a pair of 0.95 is found with a probability above
    0.9999, of 0.9 with 0.9998, of 0.8 with 0.87, of 0.7 with at most 0.24, of 0.6 with at most 0.01, of 0.5 with at most
    0.00005, and rows that have nothing in common practically never.

    Args:
        signatures: what `signatures` gives, uint32 of shape (rows, slots); rows of 0xFFFFFFFF alone are left out.
        threshold: how similar rows are that shall be found, above 0 and at most 1.

    Returns:
        int64 of shape (pairs, 2), by the later row.

    Raises:
        ValueError: for a threshold that is none.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold lies above 0 and is at most 1, and {threshold} does not")
    count, slots = signatures.shape
    there = np.flatnonzero((signatures != _NONE).any(axis=1))
    # For each row the first that it resembles, itself as long as there is none.
    found = np.arange(count)
    need = math.ceil(threshold * slots - math.sqrt(slots * threshold * (1 - threshold)) - 1e-9)
    width = _band_width(slots, threshold)
    bands = [slice(start, start + width) for start in range(0, slots - width + 1, width)]

    def meet(band: slice) -> list[tuple[np.ndarray, np.ndarray]]:
        return list(_meetings(signatures, there, band))

    # Sorting lets another thread sort; no more than that, as each band takes memory for all rows.
    with ThreadPoolExecutor(1) as pool:
        for one, other in itertools.zip_longest(bands[::2], bands[1::2]):
            beside = pool.submit(meet, other) if other else None
            for rows, others in [*meet(one), *(beside.result() if beside else ())]:
                _link(signatures, found, rows, others, need)
    # What a row resembles may itself resemble an earlier one, and that may be near enough to the row as well.
    rows = np.flatnonzero(found != np.arange(count))
    while len(rows):
        before = found[rows]
        _link(signatures, found, rows, found[before], need)
        rows = rows[found[rows] < before]
    later = np.flatnonzero(found != np.arange(count))
    return np.stack([found[later], later], axis=1)


def _band_width(slots: int, threshold: float) -> int:
    """The most slots that a band may have, so that rows of that similarity are almost sure to meet in one."""
    widths = [w for w in range(1, slots + 1) if 1 - (1 - threshold**w) ** (slots // w) >= _SURE]
    return max(widths, default=1)


def _meetings(signatures: np.ndarray, there: np.ndarray, band: slice) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows, and for each an earlier one with the same band: the first of all, and then the one just before."""
    keys = np.zeros(len(there), np.uint64)
    for slot in range(band.start, band.stop):
        keys ^= signatures[there, slot]
        keys *= _WEIGHTS[0]
        _mix(keys)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    firsts = np.flatnonzero(is_first)
    leads = np.repeat(firsts, np.diff(np.append(firsts, len(keys))))
    others = np.flatnonzero(~is_first)
    rows = there[order[others]]
    yield rows, there[order[leads[others]]]
    yield rows, there[order[others - 1]]


def _link(signatures: np.ndarray, found: np.ndarray, rows: np.ndarray, others: np.ndarray, need: int) -> None:
    """Note for each of `rows` the earlier one of `others`, where that is news and at least `need` slots agree."""
    news = others < found[rows]
    rows, others = rows[news], others[news]
    step = _BLOCK // 4
    for start in range(0, len(rows), step):
        left, right = rows[start : start + step], others[start : start + step]
        alike = np.count_nonzero(signatures[left] == signatures[right], axis=1) >= need
        found[left[alike]] = right[alike]
