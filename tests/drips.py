"""Servers that never end their answer, each at another point where a client waits, and a TLS server."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# What the server sends at once, and what it repeats after that
DRIPS = {
    "nothing at all": (b"", b""),
    "a status line": (b"HTTP/1.1 200 ", b"O"),
    "a header": (b"HTTP/1.1 200 OK\r\nX-Endless: ", b"a"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body of known length": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"a"),
    "a body until it closes": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"a"),
    "a body without a length": (b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
    "a body of HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\n", b"a"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "a chunk's size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", b"a"),
}
HANDSHAKE = (b"\x16\x03\x03\x3f\xff\x02", b"\x00")  # the start of a long TLS record, then its bytes


SECONDS = (
    0.4,
    4.0,
    40.0,
)  # how long a client waits: on a busy machine, the first may be too short to connect


@dataclass
class Drip:
    """A server that sends a byte now and then.

        Attributes:
    thread: ends when the client disconnects.
    came: is set as soon as a client is connected.
    ends: if it is set, the server ends in any case.
    """

    port: int
    thread: threading.Thread
    came: threading.Event
    ends: threading.Event


@contextmanager
def dripping(start: bytes, drop: bytes) -> Iterator[Drip]:
    listener, came, ends = socket.create_server(("127.0.0.1", 0)), threading.Event(), threading.Event()

    def drip() -> None:
        try:
            client, _ = listener.accept()
            with client:
                client.sendall(start)
                came.set()
                while not ends.wait(0.02):
                    client.sendall(drop)
                    client.settimeout(0.001)
                    try:
                        if not client.recv(1000):
                            return
                    except TimeoutError:
                        pass
        except OSError:  # the client disconnected, or no client came
            pass

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    fuse = threading.Timer(
        300, ends.set
    )  # otherwise a client that does not end would block the test for ever
    fuse.start()
    try:
        yield Drip(listener.getsockname()[1], thread, came, ends)
    finally:
        fuse.cancel()
        ends.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends the wait of a server without clients
        listener.close()


def check_that_it_leaves(drip: str, ask: Callable[[int, float], None]) -> None:
    """Checks that a client with a limit of some seconds leaves a server that would continue for hours.

        Args:
    drip: a key of DRIPS, or any other name for a TLS handshake.
    ask: gets the port and the seconds, and returns when the client has given up.
    """
    for seconds in SECONDS:
        with dripping(*DRIPS.get(drip, HANDSHAKE)) as server:
            ask(server.port, seconds)
            assert not server.ends.is_set()
            if server.came.is_set():
                server.thread.join(60)  # it ends when the connection ends
                assert not server.thread.is_alive()
                return
    raise AssertionError("no client connected in time")


@contextmanager
def serving_tls(folder: Path, host: str, body: bytes) -> Iterator[tuple[int, Path]]:
    """Yields the port of a server that answers every request with `body`, and its certificate for `host`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the server's certificate, is not installed")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-keyout", key, "-out", certificate, "-subj", f"/CN={host}", "-days", "2"]
    command += ["-addext", f"subjectAltName=DNS:{host}"]
    subprocess.run(command, check=True, capture_output=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, certificate
    finally:
        server.shutdown()
        server.server_close()
