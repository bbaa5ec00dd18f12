"""A file from a web address that the user gave, within limits of size and time."""

import http.client
import time
import urllib.request

from llava.errors import UserError

ADDRESSES = ("http://", "https://")
MAX_BYTES = 50 * 2**20
SECONDS = 60.0
CHUNK = 2**16  # bytes


def fetch(url: str, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """What is at an http or https address.

    Args:
        max_bytes: largest file taken.
        seconds: longest wait, for an answer and for the whole file.
    Raises:
        UserError: if it is no such address, gives nothing, or goes beyond a limit.
    """
    if not url.startswith(ADDRESSES):
        raise UserError(f"{url}: must start with {' or '.join(ADDRESSES)}.")
    deadline, body = time.monotonic() + seconds, bytearray()
    # some hosts refuse urllib's own name
    request = urllib.request.Request(url, headers={"User-Agent": "llava"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            while chunk := response.read1(CHUNK):
                body += chunk
                if len(body) > max_bytes:
                    raise UserError(f"{url}: is larger than {max_bytes} bytes; fetch it yourself.")
                if time.monotonic() > deadline:
                    raise UserError(f"{url}: took longer than {seconds:g} s; fetch it yourself.")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}: cannot be fetched ({error}).") from error
    return bytes(body)
