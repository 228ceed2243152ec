"""Python's search for garbage, put off while libraries are read: it finds next to none there, and takes a seventh of the start."""

from __future__ import annotations

import gc

_USUAL, _SELDOM = gc.get_threshold(), (100_000, 50, 100)


def put_off() -> None:
    """Search seldom, until `take_up`."""
    gc.set_threshold(*_SELDOM)


def take_up() -> None:
    """Search as often as before it was put off, but no more in what is there by now: libraries stay, and to look through
    torch again and again takes a fifth of the time of whatever makes many small things. Nothing happens where it was not
    put off."""
    if gc.get_threshold() == _SELDOM:
        gc.freeze()
        gc.set_threshold(*_USUAL)
