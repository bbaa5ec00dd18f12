"""Runs blocking work in threads beside an event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Threads:
    """Runs calls in threads, at most `number` at once.

    If its caller is cancelled, a running call keeps its thread until it ends; a waiting call is not started.
    """

    def __init__(self, number: int):
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="prepare")
        self._free = asyncio.Semaphore(number)

    async def run(self, function: Callable, *arguments):
        await self._free.acquire()
        called = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        called.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(called)

    def shutdown(self) -> None:
        self._pool.shutdown(wait=False)
