"""Python's search for garbage while libraries are read, and after."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Callable, Iterator

import pytest

from core import garbage
from core.model import PLAYGROUND


@pytest.fixture
def usual() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()  # whatever ran before
    gc.set_threshold(*garbage._USUAL)
    yield garbage._USUAL
    gc.set_threshold(*before)


def test_it_is_taken_up_as_it_was(usual: tuple[int, int, int]) -> None:
    garbage.put_off()
    assert gc.isenabled() and gc.get_threshold()[0] > 10 * usual[0]
    garbage.take_up()
    assert gc.get_threshold() == garbage._USUAL


def test_what_stays_is_looked_through_no_more(usual: tuple[int, int, int]) -> None:
    garbage.put_off()
    there = [[number] for number in range(1000)]
    frozen = gc.get_freeze_count()
    garbage.take_up()
    assert gc.get_freeze_count() <= frozen, "what a model left behind is not to stay"
    garbage.put_off()
    garbage.take_up(stays=True)
    assert gc.get_freeze_count() - frozen >= len(there)
    assert not any(one is there[0] for one in gc.get_objects())
    frozen = gc.get_freeze_count()
    garbage.take_up(stays=True)
    assert gc.get_freeze_count() <= frozen, "it was taken up already"


def test_what_somebody_else_set_is_left_alone(usual: tuple[int, int, int]) -> None:
    gc.set_threshold(77, 7, 7)
    garbage.take_up()
    assert gc.get_threshold() == (77, 7, 7)


def _load() -> None:
    import torch

    from core.config import ModelSettings
    from core.engine.model import load_model

    load_model(ModelSettings(name=PLAYGROUND), torch.device("cpu"), torch.float32)


def _assist() -> None:
    from core.engine.crew import assist

    assist()


@pytest.mark.parametrize("work", [_load, _assist])
def test_a_process_that_works_long_takes_it_up(
    usual: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]
) -> None:
    """Else what is dropped in circles would lie about, be it a batch on a device."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    garbage.put_off()
    work()
    assert gc.get_threshold() == garbage._USUAL
