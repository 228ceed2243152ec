"""Python's search for garbage, put off while libraries are read: it finds next to none there, and takes a seventh of the start."""

from __future__ import annotations

import gc

_USUAL, _SELDOM = gc.get_threshold(), (100_000, 50, 100)


def put_off() -> None:
    """Search seldom, until `take_up`."""
    gc.set_threshold(*_SELDOM)


def take_up(*, stays: bool = False) -> None:
    """Search as often as before it was put off; nothing happens where it was not.

    Args:
        stays: whether all that is there by now is there to the end, so that there is no search in it any more: to look
            through the libraries again and again takes a fifth of the time of whatever makes many small things.
    """
    if gc.get_threshold() == _SELDOM:
        if stays:
            gc.freeze()
        gc.set_threshold(*_USUAL)
