"""From a thread's iteration to an asynchronous one: replicas answer in an event loop, models compute in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from typing import Any


async def iterate_in_thread(
    start: Callable[[], Iterator[Any]], threads: Executor, cancel: threading.Event
) -> AsyncIterator[Any]:
    """What an iteration gives that runs in a thread.

    Leaving it, cancelled or not, sets `cancel` and waits until the thread has ended.

    Args:
        start: called in the thread.
        threads: gives it.
        cancel: what the iteration stops by.
    """
    loop, given = asyncio.get_running_loop(), asyncio.Queue()
    ended = object()

    def run() -> None:
        try:
            for item in start():
                loop.call_soon_threadsafe(given.put_nowait, (item, None))
        except BaseException as error:
            loop.call_soon_threadsafe(given.put_nowait, (None, error))
        else:
            loop.call_soon_threadsafe(given.put_nowait, (ended, None))

    running = loop.run_in_executor(threads, run)
    try:
        while True:
            item, error = await given.get()
            if error is not None:
                raise error
            if item is ended:
                return
            yield item
    finally:
        cancel.set()
        await asyncio.shield(running)
