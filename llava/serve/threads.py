"""Work that blocks, beside an event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Threads:
    """Runs calls in threads, at most `number` at once.

    A call whose caller left keeps its place until it ends; one that waits for a place leaves nothing behind.
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
