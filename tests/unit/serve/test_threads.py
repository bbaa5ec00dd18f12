"""Calls in threads whose callers may be cancelled."""

import asyncio
import gc
import threading
import weakref

import pytest

from llava.serve.threads import Threads


class Body:
    """A stand-in for the memory of a request."""


def test_a_call_whose_caller_left_keeps_its_place_and_those_that_waited_leave_nothing():
    async def main():
        threads, go, ran = Threads(1), threading.Event(), []

        async def leave(function, argument):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(threads.run(function, argument), 0.05)

        await leave(go.wait, 20)
        body = Body()
        held = weakref.ref(body)
        await leave(ran.append, body)  # the only thread is still busy
        del body
        gc.collect()
        assert held() is None
        go.set()
        await threads.run(ran.append, "later")
        assert ran == ["later"]
        threads.shutdown()

    asyncio.run(main())


def test_an_error_reaches_the_caller_and_frees_the_thread():
    async def main():
        threads = Threads(1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await threads.run(lambda: 1 / 0)
        assert await threads.run(lambda: 1) == 1
        threads.shutdown()

    asyncio.run(main())
