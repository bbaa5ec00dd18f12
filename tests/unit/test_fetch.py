"""Files from web addresses: limits of size and time."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llava.fetch import fetch


@pytest.fixture(scope="module")
def address():
    """Of a server that has 1000 bytes at /file, and gives a byte now and then at /slow."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
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
                except OSError:  # the client left
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
    with pytest.raises(ValueError, match="/file: is larger than 999 bytes"):
        fetch(f"{address}/file", max_bytes=999)


def test_a_server_that_takes_its_time_is_left(address):
    with pytest.raises(ValueError, match=r"/slow: took longer than 0.3 s"):
        fetch(f"{address}/slow", seconds=0.3)


@pytest.mark.parametrize("path", ["/nothing", "\n"])
def test_an_address_that_gives_nothing_is_named(address, path):
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(address + path)


def test_files_are_not_addresses(tmp_path):
    with pytest.raises(ValueError, match="must start with http"):
        fetch(f"file://{tmp_path}")
