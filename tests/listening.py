"""An ASGI application that listens, for what asks over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn
from starlette.applications import Starlette

from heliograph.lab import free_port, wait_until


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """The URL of an ASGI application that listens on loopback."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_config=None))
    thread = Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 60.0, "the server listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
