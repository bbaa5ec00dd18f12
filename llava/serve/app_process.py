"""The process that serves the application, and how it ends."""

import asyncio
import time
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

PATIENCE = 1.0  # seconds that requests under way have to take their 503, while new ones are refused
GRACE = 5  # seconds until connections that are still open are cut


class _Process(uvicorn.Server):
    """Ends the requests under way, where uvicorn alone would wait for them and then cut them off."""

    async def shutdown(self, sockets=None) -> None:
        server = self.config.app.state.server  # type: ignore[union-attr]
        server.end()
        give_up = time.monotonic() + PATIENCE
        while server.engine.num_open and time.monotonic() < give_up:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve `app`, made by llava.serve.app.create_app, until SIGINT or SIGTERM.

    Requests under way are then answered with a 503, streams with an event that says so, and SIGTERM ends the
    process as it would end one that does not handle it.
    """
    config = uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=GRACE)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when all is closed
        _Process(config).run()
