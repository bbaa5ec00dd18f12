"""A server that never ends its answer, wherever a client waits for one; and a server with TLS."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# What it says at once, and what it repeats after that
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


@contextmanager
def dripping(start: bytes, drop: bytes) -> Iterator[tuple[int, threading.Thread, threading.Event]]:
    """Its port, its thread, which ends when the client leaves, and an event that ends it in any case."""
    listener, ends = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip() -> None:
        client, _ = listener.accept()
        with client:
            try:
                client.sendall(start)
                while not ends.wait(0.02):
                    client.sendall(drop)
                    client.settimeout(0.001)
                    try:
                        if not client.recv(1000):
                            return
                    except TimeoutError:
                        pass
            except OSError:  # the client left
                pass

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    fuse = threading.Timer(60, ends.set)  # or a client that does not end would hold the test for ever
    fuse.start()
    try:
        yield listener.getsockname()[1], thread, ends
    finally:
        fuse.cancel()
        ends.set()
        listener.close()


@contextmanager
def serving_tls(folder: Path, host: str, body: bytes) -> Iterator[tuple[int, Path]]:
    """The port of a server that answers everything with `body`, and its certificate for `host`."""
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
