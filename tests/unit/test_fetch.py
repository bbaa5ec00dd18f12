"""Files from web addresses: limits of size and time."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from drips import DRIPS, check_that_it_leaves, dripping, serving_tls

from llava import fetch as fetch_module
from llava.fetch import fetch


@pytest.fixture(scope="module")
def address():
    """The address of a server with 1000 bytes at /file, which sends a byte now and then at /slow."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/ftp":
                self.send_response(302)
                self.send_header("Location", "ftp://127.0.0.1/file")
                self.end_headers()
                return
            if self.path not in ("/file", "/slow"):
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            if self.path == "/file":
                self.wfile.write(b"x" * 1000)
            for _ in range(100 if self.path == "/slow" else 0):
                try:
                    self.wfile.write(b"x")
                except OSError:  # the client disconnected
                    return
                time.sleep(0.05)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_within_the_limits_comes_whole(address):
    assert fetch(f"{address}/file", max_bytes=1000) == b"x" * 1000


def test_a_file_beyond_the_size_limit_is_refused(address):
    with pytest.raises(ValueError, match="/file.*999 bytes"):
        fetch(f"{address}/file", max_bytes=999)


def test_a_server_that_takes_its_time_is_left(address):
    with pytest.raises(ValueError, match=r"/slow.*longer than 0.3 s"):
        fetch(f"{address}/slow", seconds=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("drip", [*DRIPS, "a handshake"])
def test_a_server_that_never_ends_is_left_at_the_deadline(drip):
    """The client leaves hours before the server would end, at each point of the answer."""
    scheme = "http" if drip in DRIPS else "https"

    def ask(port: int, seconds: float) -> None:
        with pytest.raises(ValueError, match=rf"/x.png.*longer than {seconds:g} s"):
            fetch(f"{scheme}://127.0.0.1:{port}/x.png", seconds=seconds)

    check_that_it_leaves(drip, ask)


def test_a_file_comes_whole_over_tls_from_the_host_of_the_certificate_alone(tmp_path, monkeypatch):
    body = bytes(range(256)) * 1000
    with serving_tls(tmp_path, "localhost", body) as (port, certificate):
        with pytest.raises(ValueError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://localhost:{port}/")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(f"https://localhost:{port}/") == body
        with pytest.raises(ValueError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://127.0.0.1:{port}/")


def test_a_file_comes_by_the_proxy_of_the_environment(address, monkeypatch):
    monkeypatch.setenv("http_proxy", address)
    with pytest.raises(ValueError, match="fetched.*404"):  # the proxy gets the whole address
        fetch("http://a.invalid/file")


def test_a_redirect_leads_on_within_the_same_time(address):
    with dripping(f"HTTP/1.1 302 Found\r\nLocation: {address}/slow\r\n\r\n".encode(), b"") as server:
        with pytest.raises(ValueError, match="longer than 0.4 s"):
            fetch(f"http://127.0.0.1:{server.port}/", seconds=0.4)
        assert not server.ends.is_set()


def test_a_name_that_is_never_resolved_is_left_at_the_deadline(monkeypatch):
    ends = threading.Event()
    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", lambda *arguments: ends.wait(60))
    try:
        with pytest.raises(ValueError, match="longer than 0.2 s"):
            fetch("http://a.org/x.png", seconds=0.2)
        assert not ends.is_set()
    finally:
        ends.set()


@pytest.mark.parametrize("path", ["/nothing", "\n", "/\u00e9", "/ftp"])
def test_an_address_that_gives_nothing_is_named(address, path):
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(address + path)


def test_files_are_not_addresses(tmp_path):
    with pytest.raises(ValueError, match="http:// or https://"):
        fetch(f"file://{tmp_path}")
