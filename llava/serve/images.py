"""Reads pictures that clients send, as data URLs or public addresses; limits are checked before decoding."""

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from PIL import Image

from llava.errors import UserError
from llava.fetch import connect, in_time, timed_tls
from llava.pictures import ImageError, load_image
from llava.text import replace_surrogates

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # Pillow's other formats call programs, or are seldom read
MAX_ASPECT = 100  # longer to shorter side; the image processor enlarges the shorter to the tower's input
MAX_REDIRECTS = 3
MAX_HOST = 253  # characters of a host name in DNS
MAX_HEAD = 1000  # characters of a data URL before its data
DATA_URL = re.compile(
    r"data:\s*(?:image/[\w.+-]+)?\s*(?:;\s*[\w.+-]+=[^;,]*)*(;\s*base64\s*)?,", re.IGNORECASE
)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # the only part of IPv6 that the open internet uses


@dataclass(frozen=True)
class ImageLimits:
    """The limits of one picture.

    Args:
        max_bytes: the most bytes of the encoded file.
        max_pixels: the most pixels of the square around the picture, which `pad` makes.
        allow_urls: whether https URLs are fetched.
        seconds: the time that all fetches of a request may take together.
    """

    max_bytes: int = 10 * 2**20
    max_pixels: int = 64 * 10**6
    allow_urls: bool = False
    seconds: float = 10.0


def read_images(urls: Iterable[str], limits: ImageLimits) -> Iterator[Image.Image]:
    """Yield the pictures at a request's `image_url`s as RGB images, each read only when it is asked for.

    Raises UserError if one is not a picture, exceeds a limit, or may not or cannot be fetched.
    """
    deadline = time.monotonic() + limits.seconds
    for url in urls:
        yield read_image(url, limits, deadline)


def is_data(url: str) -> bool:
    return url.lstrip()[:5].lower() == "data:"


def read_image(url: str, limits: ImageLimits, deadline: float) -> Image.Image:
    """Read one picture for read_images; a fetch must end by time.monotonic() == `deadline`."""
    if is_data(url):
        return decode_image(data_of(url, limits.max_bytes), limits.max_pixels)
    if not limits.allow_urls:
        raise UserError(
            "image_url must be a data URL (data:image/png;base64,...): this server fetches no other URL."
        )
    return decode_image(fetch(url, limits, deadline), limits.max_pixels)


def data_of(url: str, max_bytes: int) -> bytes:
    """The decoded bytes of a data URL."""
    url = replace_surrogates(url.lstrip())
    head = DATA_URL.match(url[:MAX_HEAD])
    if head is None:
        raise UserError(
            "image_url must begin like data:image/png;base64, the beginning of a picture's data URL."
        )
    is_base64, payload = head[1] is not None, url[head.end() :]
    if is_base64:
        payload = "".join(payload.split())  # some encoders break lines
    if len(payload) > max_bytes * (4 / 3 if is_base64 else 3) + 4:
        raise UserError(
            f"an image is larger than {max_bytes} bytes, this server's limit; send a smaller one."
        )
    data = unquote_to_bytes(payload)
    try:
        return within(base64.b64decode(data, validate=True) if is_base64 else data, max_bytes)
    except binascii.Error as error:
        raise UserError(f"image_url is not valid base64 ({error}).") from error


def within(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise UserError(
            f"an image is larger than {max_bytes} bytes, this server's limit; send a smaller one."
        )
    return data


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture to RGB; its size is checked from the header before any pixel is decoded."""
    try:
        return load_image(BytesIO(data), FORMATS, partial(check_size, max_pixels=max_pixels))
    except ImageError as error:
        is_too_large = isinstance(error.__cause__, Image.DecompressionBombError)
        raise (TooLarge if is_too_large else UserError)(f"an image {error.reason}") from error


class TooLarge(UserError):
    """A picture with more pixels, or a longer side relative to the other, than the server accepts."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    side = max(width, height)
    if side * side > max_pixels:
        raise TooLarge(
            f"an image has {width}x{height} px, but this server accepts at most {int(max_pixels**0.5)} px "
            "per side: scale it down."
        )
    if side > MAX_ASPECT * min(width, height):
        raise TooLarge(
            f"an image has {width}x{height} px, but one side may be at most {MAX_ASPECT} times the other: "
            "crop it."
        )


def fetch(url: str, limits: ImageLimits, deadline: float) -> bytes:
    """Fetch an https URL by time.monotonic() == `deadline`; redirects too must lead to public addresses."""
    for _ in range(MAX_REDIRECTS + 1):
        try:
            status, location, data = _get(url, limits.max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            # without the error's own text, which would reveal what is at an address
            raise UserError(f"image_url of {urlsplit(url).hostname} could not be fetched.") from error
        if status == 200:
            return data
        if status not in (301, 302, 303, 307, 308) or not location:
            raise UserError(f"image_url of {urlsplit(url).hostname}: the host answered with status {status}.")
        try:
            url = urljoin(url, location)
        except ValueError as error:  # an invalid bracket
            raise UserError(
                f"image_url of {urlsplit(url).hostname} redirects to an invalid address."
            ) from error
    raise UserError(f"image_url has more than {MAX_REDIRECTS} redirects.")


def _get(url: str, max_bytes: int, deadline: float) -> tuple[int, str | None, bytes]:
    """The status, Location and body of one request; the body is read only for status 200."""
    host, target = split_url(url)
    address = in_time(deadline, public_address, host)
    with closing(_Pinned(host, address, deadline)) as connection:
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "llava"})
        with closing(connection.getresponse()) as response:
            data = bytearray()
            while response.status == 200 and (chunk := response.read1(65536)):
                data += chunk
                within(data, max_bytes)  # type: ignore[arg-type]
            return response.status, response.headers.get("Location"), bytes(data)


def split_url(url: str) -> tuple[str, str]:
    """Host and request target of an https URL at its standard port."""
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme == "https" and parts.hostname and parts.port in (None, 443)
        host = parts.hostname.encode("idna").decode() if is_plain else ""  # type: ignore[union-attr]
    except ValueError:  # an invalid port or bracket, or too long a name
        host = ""
    if not host or len(host) > MAX_HOST or parts.username is not None:
        raise UserError("image_url must be a data URL or https://host/..., without a port or a user's name.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return host, re.sub(r"[^!-~]", lambda match: "".join(f"%{b:02X}" for b in match[0].encode()), target)


def public_address(host: str) -> str:
    """The address to connect to for a host, all of whose addresses must be public.

    Raises:
        UserError: if an address is not public.
        OSError: if the name cannot be resolved.
    """
    addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]
    if not addresses or not all(map(is_public, addresses)):
        raise UserError(
            f"image_url of {host} is not at a public address; this server fetches only from those."
        )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is on the public internet; for IPv6 that embeds IPv4, the IPv4 address decides."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if ip.version == 6:
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inner or ip
    return ip.is_global and not ip.is_multicast and (ip.version == 4 or ip in GLOBAL_UNICAST)


class _Pinned(http.client.HTTPSConnection):
    """Connects to the address that was checked, since a second look-up of the name might give another.

    At time.monotonic() == `deadline` the connection ends, whatever it is doing.
    """

    def __init__(self, host: str, address: str, deadline: float, port: int = 443):
        self._tls = timed_tls(deadline)
        super().__init__(host, port, context=self._tls)
        self._create_connection = lambda place, *_: connect(
            (address, place[1]), deadline
        )  # HTTPSConnection makes its socket with this
