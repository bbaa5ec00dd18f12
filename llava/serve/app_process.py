"""The process that serves the application, and how it ends."""

import asyncio
import time
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

PATIENCE = 1.0  # seconds in which open requests can receive their 503, while new ones are refused
GRACE = 5  # seconds until connections that are still open are cut


class _Process(uvicorn.Server):
    """Ends open requests with an answer; uvicorn itself would wait for them and then cut them off."""

    async def shutdown(self, sockets=None) -> None:
        server = self.config.app.state.server  # type: ignore[union-attr]
        server.end()
        give_up = time.monotonic() + PATIENCE
        while server.engine.num_open and time.monotonic() < give_up:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve `app`, made by llava.serve.app.create_app, until SIGINT or SIGTERM.

    Open requests are then answered with a 503, and open streams with an event that says so. After that,
    SIGTERM ends the process as if the process did not handle it.
    """
    config = uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=GRACE)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when all is closed
        _Process(config).run()
