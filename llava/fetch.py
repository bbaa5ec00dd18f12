"""Fetches a file from a web address within limits of size and time, and makes sockets with a deadline.

A socket's own timeout starts again with each byte, so a server could keep a client waiting for hours by
sending a byte now and then. Everything here ends at a deadline, a time of time.monotonic(), whatever the
server does.
"""

import concurrent.futures
import http.client
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

from llava.errors import UserError

ADDRESSES = ("http://", "https://")
MAX_BYTES = 50 * 2**20
SECONDS = 60.0
CHUNK = 2**16  # bytes


def fetch(url: str, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """Return the content of an http or https address.

    Args:
        max_bytes: size of the largest file that is accepted.
        seconds: longest wait for the whole file, redirects included.
    Raises:
        UserError: if the address is of another kind, cannot be fetched, or exceeds a limit.
    """
    if not url.startswith(ADDRESSES):
        raise UserError(f"{url}: an address must start with {' or '.join(ADDRESSES)}.")
    deadline, body = time.monotonic() + seconds, bytearray()
    try:
        # some hosts refuse urllib's own name
        request = urllib.request.Request(url, headers={"User-Agent": "llava"})
        with _opener(deadline).open(request) as response:
            while len(body) <= max_bytes and (chunk := response.read1(CHUNK)):
                body += chunk
    # urllib reports an address that it cannot read as ValueError
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise UserError(
                f"{url}: the download took longer than {seconds:g} s; fetch the file yourself."
            ) from error
        raise UserError(f"{url}: cannot be fetched ({error}).") from error
    if len(body) > max_bytes:
        raise UserError(f"{url}: the file is larger than {max_bytes} bytes; fetch it yourself.")
    return bytes(body)


def _opener(deadline: float) -> urllib.request.OpenerDirector:
    """urllib's opener without ftp and files; its connections end at `deadline`."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        _TimedHandler(deadline),
    ):
        opener.add_handler(handler)
    return opener


class _TimedHandler(urllib.request.AbstractHTTPHandler):
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, deadline: float):
        super().__init__()
        self.deadline = deadline

    def http_open(self, request):
        return self.do_open(partial(self._connection, http.client.HTTPConnection), request)

    def https_open(self, request):
        kind = partial(self._connection, http.client.HTTPSConnection)
        return self.do_open(kind, request, context=timed_tls(self.deadline))

    def _connection(self, kind: type, host: str, **options) -> http.client.HTTPConnection:
        connection = kind(host, **options)
        # http.client opens its sockets through this, also that to a proxy
        connection._create_connection = lambda address, *_: connect(address, self.deadline)
        return connection


def in_time(deadline: float, function: Callable, *arguments):
    """Return the result of a function that has no timeout.

    Raises TimeoutError at the deadline; the function then runs on in its own thread.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # raised again in the caller's thread
            future.set_exception(error)

    Thread(target=call, name="in-time", daemon=True).start()
    try:
        return future.result(seconds_until(deadline))
    except concurrent.futures.TimeoutError as error:  # another class than TimeoutError in Python 3.10
        raise TimeoutError from error


def seconds_until(deadline: float) -> float:
    """The seconds left. Raises TimeoutError if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the time limit has passed")
    return seconds


if TYPE_CHECKING:
    from socket import socket as Socket
else:
    Socket = object


class _Timed(Socket):
    """A mixin for sockets: all their reads and writes end at `deadline`."""

    deadline: float

    def recv_into(self, *arguments):
        self.settimeout(seconds_until(self.deadline))
        return super().recv_into(*arguments)

    def send(self, *arguments):
        self.settimeout(seconds_until(self.deadline))
        return super().send(*arguments)

    def sendall(self, *arguments):
        self.settimeout(seconds_until(self.deadline))
        return super().sendall(*arguments)


class _TimedSocket(_Timed, socket.socket):
    pass


class _TimedTLS(_Timed, ssl.SSLSocket):
    def do_handshake(self, *arguments):
        self.settimeout(seconds_until(self.deadline))
        super().do_handshake(*arguments)


def connect(address: tuple[str, int], deadline: float) -> socket.socket:
    """Connect to (host, port). The connection and the look-up of the host's name end at `deadline`.

    Raises OSError if there is no connection.
    """
    error = OSError(f"{address[0]} has no address")
    for family, kind, protocol, _, place in in_time(
        deadline, socket.getaddrinfo, *address, socket.AF_UNSPEC, socket.SOCK_STREAM
    ):
        connection = _TimedSocket(family, kind, protocol)
        connection.deadline = deadline
        try:
            connection.settimeout(seconds_until(deadline))
            connection.connect(place)
        except OSError as caught:
            connection.close()
            error = caught
        else:
            return connection
    raise error


def timed_tls(deadline: float) -> ssl.SSLContext:
    """A context as ssl.create_default_context() makes it, whose sockets end at `deadline`."""
    context = ssl.create_default_context()
    context.sslsocket_class = type("_TimedTLS", (_TimedTLS,), {"deadline": deadline})
    return context
