"""A free port for a test's server."""

import socket


def free_port() -> int:
    """Returns a port of 127.0.0.1 that no program uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
