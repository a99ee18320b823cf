"""Runs a function in a thread of its own, which an interrupt ends."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_here = threading.local()  # in such a thread: `stop`, an Event


def apart(function: Callable[..., T], *args: Any) -> T:
    """Return the result of a function, from a thread where no mesh is set and nothing is traced.

    Python interrupts the main thread alone. It then waits no longer; the other thread ends at its
    next `check`.
    """
    stop = threading.Event()

    def run() -> T:
        _here.stop = stop
        return function(*args)

    thread = ThreadPoolExecutor(1)
    try:
        return thread.submit(run).result()
    except BaseException:
        stop.set()
        raise
    finally:
        thread.shutdown(wait=False)


def check() -> None:
    """End this thread's function if nobody waits for it any longer."""
    if hasattr(_here, "stop") and _here.stop.is_set():
        raise KeyboardInterrupt
