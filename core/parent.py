"""Helpers die with the process that started them, also when that was killed and could not say so."""

from __future__ import annotations

import os
import threading
import time

import psutil


def end_with(parent: int) -> None:
    """End this process, from a thread of its own, when the process of that number has ended."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    try:
        process = psutil.Process(parent)
        born = process.create_time()
        while process.is_running() and process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    except psutil.Error:
        pass
    os._exit(0)
