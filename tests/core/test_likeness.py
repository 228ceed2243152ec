"""Near-duplicates: what is alike is found, what is not is left alone, and a crowd of equal rows costs no more than others."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from core import likeness
from core.likeness import SHINGLE, SLOTS, find_pairs, signatures


def join(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *map(len, rows)])
    return np.array([token for row in rows for token in row], np.int32), starts.astype(np.int64)


def sign(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return signatures(*join(rows))


def draw(seed: int, count: int, length: int, words: int = 30_000) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, words, (count, length)).tolist()


def similarity(left: Sequence[int], right: Sequence[int]) -> float:
    """The share of shingles that two rows have in common, counted."""
    sets = [{tuple(row[at : at + SHINGLE]) for at in range(len(row) - SHINGLE + 1)} for row in (left, right)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def blend(left: Sequence[int], right: Sequence[int], share: float) -> list[int]:
    """The beginning of one row and the end of another."""
    kept = round(share * len(left))
    return [*left[:kept], *right[kept:]]


def test_equal_rows_and_those_with_a_changed_word_are_found() -> None:
    rows = draw(0, 6, 100)
    rows += [list(rows[4]), list(rows[1]), [*rows[2][:30], 7, *rows[2][31:]], [*rows[3][:-1], 7]]
    pairs = find_pairs(sign(rows))
    assert pairs.dtype == np.int64 and pairs.tolist() == [[4, 6], [1, 7], [2, 8], [3, 9]]
    assert find_pairs(sign(rows), 1.0).tolist() == [[4, 6], [1, 7]]


def test_one_word_in_sixty() -> None:
    """In the middle it is in five of 56 shingles: a similarity of 0.84."""
    rows = draw(18, 1000, 60)
    changed = [[*row[:30], 7, *row[31:]] for row in rows]
    pairs = find_pairs(sign([*rows, *changed]))
    assert len(pairs) > 940 and (pairs[:, 1] - pairs[:, 0] == 1000).all()


def test_signatures_agree_as_far_as_rows_do() -> None:
    pairs = [(row, blend(row, other, share)) for share in (0.3, 0.5, 0.7, 0.9) for row, other in zip(draw(1, 100, 200), draw(2, 100, 200), strict=True)]  # fmt: skip
    left, right = (sign([pair[side] for pair in pairs]) for side in (0, 1))
    said = (left == right).mean(axis=1)
    true = np.array([similarity(*pair) for pair in pairs])
    assert np.abs(said - true).max() < 0.26  # four deviations of 64 draws
    means = (said - true).reshape(4, 100).mean(axis=1)
    assert np.abs(means).max() < 0.02, "not skewed to either side"


def test_recall_and_false_alarms() -> None:
    rows, others = draw(3, 2000, 170), draw(4, 2000, 170)
    likely, unlikely = [blend(row, other, 0.95) for row, other in zip(rows, others, strict=True)], draw(5, 2000, 170, 50)  # fmt: skip
    true = np.array([similarity(*pair) for pair in zip(rows, likely, strict=True)])
    assert true.min() > 0.89 and true.max() < 0.91
    pairs = find_pairs(sign([*rows, *likely, *unlikely]))
    found = {tuple(pair) for pair in pairs.tolist()}
    right = {(place, place + 2000) for place in range(2000)}
    assert len(found & right) > 0.99 * 2000
    assert found <= right, "rows that have nothing in common are no pair"


def test_as_alike_as_the_threshold() -> None:
    rows, others = draw(19, 1000, 170), draw(20, 1000, 170)
    likely = [blend(row, other, 0.89) for row, other in zip(rows, others, strict=True)]
    assert similarity(rows[0], likely[0]) == pytest.approx(0.8, abs=0.01)
    assert 800 < len(find_pairs(sign([*rows, *likely]))) < 930


def test_half_alike_is_not_alike() -> None:
    rows, others = draw(6, 1000, 100), draw(7, 1000, 100)
    assert len(find_pairs(sign([*rows, *(blend(*pair, 0.6) for pair in zip(rows, others, strict=True))]))) == 0


def test_each_row_is_named_once_with_the_first_that_it_resembles() -> None:
    row, other = draw(8, 2, 170)
    rows = [row, *draw(9, 3, 170), blend(row, other, 0.97), other, list(row), blend(row, other, 0.98), list(other)]
    assert find_pairs(sign(rows)).tolist() == [[0, 4], [0, 6], [0, 7], [5, 8]]


def distinct(count: int) -> np.ndarray:
    """Signatures that agree in nothing."""
    return np.arange(count * SLOTS, dtype=np.uint32).reshape(count, SLOTS)


def test_others_in_a_band_hide_no_pair() -> None:
    """In each of the 12 bands of 5, the first with that band is a row that resembles neither of the pair."""
    signed = distinct(14)
    signed[13] = signed[12]
    for band in range(12):
        signed[band, band * 5 : band * 5 + 5] = signed[13, band * 5 : band * 5 + 5]
    assert find_pairs(signed).tolist() == [[12, 13]]


def test_an_earlier_row_that_is_met_in_no_band() -> None:
    """The third differs from the first once in every band, in 52 of 64 slots not at all; the second lies between them."""
    signed = np.repeat(distinct(1), 3, axis=0)
    signed[2, :60:5] = signed[1, :30:5] = 0
    signed[2, :30:5] = signed[1, :30:5] = 7
    assert find_pairs(signed[[0, 2]]).tolist() == []
    assert find_pairs(signed).tolist() == [[0, 1], [0, 2]]


def test_the_earlier_of_two_that_are_both_resembled() -> None:
    signed = np.repeat(distinct(1), 3, axis=0)
    signed[1, 5:29] += 1000
    signed[2, 17:29] += 1000
    assert find_pairs(signed).tolist() == [[0, 2]]


def test_a_crowd_of_equal_rows_takes_little_memory() -> None:
    crowd = np.repeat(sign(draw(12, 1, 60)), 100_000, axis=0)
    crowd[::1000] = sign(draw(13, 100, 60))
    tracemalloc.start()
    pairs = find_pairs(crowd)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs.tolist() == [[1, row] for row in range(2, 100_000) if row % 1000]
    assert peak < 60e6  # of a million rows, ten times as much


def test_short_and_empty_rows() -> None:
    rows = [
        [7],
        [7, 0],
        [],
        [1, 2, 3],
        [7],
        [],
        [3, 2, 1],
        [1, 2, 3],
        [9] * 5,
        [9] * 50,
        [1, 2, 3, 4],
        [0],
        [1, 2, 3, 4, 5],
    ]
    signed = sign(rows)
    assert find_pairs(signed).tolist() == [[0, 4], [3, 7], [8, 9]]
    assert (signed[[2, 5]] == 0xFFFFFFFF).all() and not (np.delete(signed, [2, 5], 0) == 0xFFFFFFFF).any()
    assert signatures(np.zeros(0, np.int32), np.zeros(1, np.int64)).shape == (0, SLOTS)
    for empty in (sign([]), sign([[], []])):
        assert find_pairs(empty).shape == (0, 2)


def test_where_rows_are_divided_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of tokens end within rows, within shingles, and between short rows."""
    rng = np.random.default_rng(14)
    rows = [rng.integers(0, 9, length).tolist() for length in rng.integers(0, 14, 300)] + draw(15, 2, 500)
    whole = sign(rows)
    for block in (64, 67, 129):
        monkeypatch.setattr(likeness, "_BLOCK", block)
        assert np.array_equal(sign(rows), whole)
    alone = np.concatenate([sign([row]) for row in rows])
    assert np.array_equal(alone, whole)
    ids, starts = join([[5] * 7, *rows])
    assert np.array_equal(signatures(ids, starts[1:]), whole), "rows may begin further on"


def test_the_numbers_are_the_same_everywhere() -> None:
    ids, starts = join([list(range(100, 160)), [1, 2], [0, 2**31 - 1]])
    told = signatures(ids, starts)
    assert told.dtype == np.uint32
    for order in ("<", ">"):
        again = signatures(ids.astype(f"{order}i4"), starts.astype(f"{order}i8"))
        assert np.array_equal(again, told)
    assert told[:, [0, 31, 63]].tolist() == [[1521008270, 677309132, 700019535], [189612188] * 3, [4141806483] * 3]


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_a_threshold_that_is_none(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        find_pairs(sign([[1]]), threshold)


def test_other_thresholds() -> None:
    row, other = draw(16, 2, 200)
    rows = [row, blend(row, other, 0.75), *draw(17, 5, 200)]
    assert similarity(*rows[:2]) == pytest.approx(0.6, abs=0.03)
    assert len(find_pairs(sign(rows), 0.8)) == 0
    assert find_pairs(sign(rows), 0.4).tolist() == [[0, 1]]
