"""From a thread's work to an asynchronous iteration: replicas answer in an event loop, models compute in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nextgpt.streaming import FromThread


async def iterate_in_thread(
    work: Callable[[Callable[[Any], None]], None], threads: ThreadPoolExecutor, cancel: threading.Event
) -> AsyncIterator[Any]:
    """What a thread's work tells, as [`FromThread`] has it.

    Leaving it, cancelled or not, sets `cancel` and waits until the work has ended.

    Args:
        cancel: what the work stops by.
    """
    told = FromThread(work, threads)
    try:
        async for item in told:
            yield item
    finally:
        cancel.set()
        await asyncio.shield(told.running)
