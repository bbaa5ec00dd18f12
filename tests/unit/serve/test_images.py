"""Pictures from clients: what is refused, and how early."""

import base64
import threading
import time
from io import BytesIO

import pytest
from drips import DRIPS, check_that_it_leaves, serving_tls
from pictures import data_url, encoded, header_only_png
from PIL import Image

from llava.serve import images
from llava.serve.images import ImageLimits, data_of, decode_image, fetch, is_public, read_images, split_url

LIMITS = ImageLimits(max_bytes=10_000, max_pixels=100 * 100)


def read(url, limits=LIMITS):
    (image,) = read_images([url], limits)
    return image


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_data_url_is_read(kind):
    image = read(data_url(encoded(kind=kind), f"image/{kind.lower()}"))
    assert (image.mode, image.size) == ("RGB", (20, 10))


PAYLOAD = base64.b64encode(encoded()).decode()
LINES = [PAYLOAD[i : i + 76] for i in range(0, len(PAYLOAD), 76)]


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64," + "\n".join(LINES),
        "data:image/png;base64," + "\r\n".join(LINES) + "\r\n",
        "data:image/png;base64, " + " ".join(LINES),
        "data:image/png;base64,\t" + "\t".join(LINES),
        "data:image/png;base64," + "%0A".join(LINES).replace("%0A", "") + "\n",
        "data:image/png;base64," + PAYLOAD.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "DATA:IMAGE/PNG;BASE64," + PAYLOAD,
        "Data:image/PNG;Base64," + PAYLOAD,
        "data:image/png;charset=utf-8;base64," + PAYLOAD,
        "data:image/png;name=a b.png;CHARSET=UTF-8;base64," + PAYLOAD,
        "data:image/png; charset=utf-8; base64, " + PAYLOAD,
        "data:image/png;name=" + "a" * 500 + ";base64," + PAYLOAD,
        "data:;base64," + PAYLOAD,
        " \ndata:image/png;base64," + PAYLOAD,
        "data:image/png," + "".join(f"%{byte:02x}" for byte in encoded()),
    ],
)
def test_a_data_url_is_read_however_it_is_written(url):
    assert read(url).size == (20, 10)


def test_an_invalid_data_url_is_refused_at_once():
    """The pattern must match its parameters in only one way, or a thousand letters would take for ever."""
    with pytest.raises(ValueError, match="image_url.*begin like"):
        read("data:" + ";a=  " * 150 + "x" * 1000)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:image/png;base64,\ud800", "not valid base64"),
        ("data:image/png;base64,AAAA\u00e9", "not valid base64"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png;base64,aGVsbG8=", "not BMP"),
        ("data:text/html;base64,aGVsbG8=", "begin like"),
        ("data:", "begin like"),
        (data_url(encoded()[:40]), "damaged|cannot be read"),
        (data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not BMP"),
        (data_url(bytes(10_001)), "10000 bytes"),
        (data_url(encoded(101, 10)), "100 px"),
        (data_url(header_only_png(12_000, 12_000)), "100 px"),
        ("https://example.org/a.png", "must be a data URL"),
        ("file:///etc/passwd", "must be a data URL"),
        ("", "must be a data URL"),
    ],
)
def test_what_is_no_picture_within_the_limits_is_refused_in_words(url, says):
    with pytest.raises(ValueError, match=says):
        read(url)


def test_a_bombs_size_is_checked_before_its_pixels_are_made(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="12000x12000"):
        decode_image(header_only_png(12_000, 12_000), LIMITS.max_pixels)


def test_a_strip_that_the_processor_would_blow_up_is_refused():
    with pytest.raises(ValueError, match="100 times"):
        decode_image(encoded(2000, 10), 10**8)


def test_base64_is_measured_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(images.base64, "b64decode", lambda *args, **kwargs: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="larger"):
        data_of("data:image/png;base64," + "A" * 20_000, 10_000)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::127.0.0.1",
        "fec0::1",
    ],
)
def test_addresses_that_are_not_of_the_open_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "https://example.org:8443/a.png",
        "https://user@example.org/a.png",
        "https:///a.png",
        "https://[::1/a.png",
        "https://example.org:99999/",
        "ftp://example.org/a",
        "https://" + "a" * 300 + ".org/",
        "https://" + "a." * 300 + "org/",
        "\ud800",
    ],
)
def test_addresses_of_other_kinds_are_refused(url):
    with pytest.raises(ValueError, match="image_url must be"):
        split_url(url)


def test_a_target_holds_nothing_that_ends_a_request_line():
    assert split_url("https://example.org/a b\u00e9?q=1#f") == ("example.org", "/a%20b%C3%A9?q=1")


class Answer:
    """An HTTP answer with the interface of http.client."""

    def __init__(self, status, body=b"", **headers):
        self.status, self.headers, self._file = status, headers, BytesIO(body)

    def read1(self, size):
        return self._file.read(size)

    def close(self):
        pass


@pytest.fixture
def internet(monkeypatch):
    """Yields a map of hosts to addresses and answers, and the list of connections."""
    hosts, asked = {}, []

    class Connection:
        def __init__(self, host, address, deadline):
            self.host = host
            asked.append(address)

        def request(self, method, target, headers):
            pass

        def getresponse(self):
            return hosts[self.host][1]

        def close(self):
            pass

    def resolve(host, port, type):
        if host not in hosts:
            raise OSError("unknown")
        return [(None, None, None, "", (address, port)) for address in hosts[host][0]]

    monkeypatch.setattr(images, "_Pinned", Connection)
    monkeypatch.setattr(images.socket, "getaddrinfo", resolve)
    return hosts, asked


URLS = ImageLimits(max_bytes=1000, allow_urls=True)


def test_a_public_picture_is_fetched_from_the_address_that_was_checked(internet):
    hosts, asked = internet
    hosts["a.org"] = ["8.8.8.8"], Answer(200, encoded())
    assert read("https://a.org/x.png", URLS).size == (20, 10)
    assert asked == ["8.8.8.8"]


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"]])
def test_a_name_that_leads_to_a_private_address_is_never_asked(internet, addresses):
    hosts, asked = internet
    hosts["a.org"] = addresses, Answer(200, encoded())
    with pytest.raises(ValueError, match="public address"):
        fetch("https://a.org/x.png", URLS, time.monotonic() + 10)
    assert asked == []


@pytest.mark.parametrize(
    "location", ["https://inside.org/", "http://a.org/", "file:///etc/passwd", "https://[::1", "//[a"]
)
def test_a_redirect_to_what_is_not_allowed_is_not_followed(internet, location):
    hosts, asked = internet
    hosts["a.org"] = ["8.8.8.8"], Answer(302, Location=location)
    hosts["inside.org"] = ["192.168.0.1"], Answer(200, encoded())
    with pytest.raises(ValueError, match="public address|a data URL|invalid address"):
        fetch("https://a.org/x.png", URLS, time.monotonic() + 10)
    assert asked == ["8.8.8.8"]


def test_redirects_end(internet):
    hosts, asked = internet
    hosts["a.org"] = ["8.8.8.8"], Answer(302, Location="/again")
    with pytest.raises(ValueError, match="3 redirects"):
        fetch("https://a.org/x.png", URLS, time.monotonic() + 10)
    assert len(asked) == 4


def test_a_body_beyond_the_limit_and_a_status_other_than_200_are_refused(internet):
    hosts, _ = internet
    hosts["big.org"] = ["8.8.8.8"], Answer(200, bytes(1001))
    hosts["gone.org"] = ["8.8.8.8"], Answer(404)
    with pytest.raises(ValueError, match="1000 bytes"):
        fetch("https://big.org/", URLS, time.monotonic() + 10)
    with pytest.raises(ValueError, match="status 404"):
        fetch("https://gone.org/", URLS, time.monotonic() + 10)
    with pytest.raises(ValueError, match="not be fetched"):
        fetch("https://nowhere.org/", URLS, time.monotonic() + 10)


@pytest.mark.slow
@pytest.mark.parametrize("drip", [*DRIPS, "a handshake"])
def test_a_server_that_never_ends_is_left_at_the_deadline(monkeypatch, drip):
    """The fetch ends hours before the server would, at each point of the answer."""

    class Local(images._Pinned):
        """Connects to the port of the server below, with TLS only if the server's TLS is tested."""

        def __init__(self, host, address, deadline):
            super().__init__(host, address, deadline, port=ports[-1])
            if drip in DRIPS:
                self._tls.wrap_socket = lambda plain, server_hostname: plain

    ports = []
    monkeypatch.setattr(images, "_Pinned", Local)
    monkeypatch.setattr(images, "public_address", lambda host: "127.0.0.1")

    def ask(port: int, seconds: float) -> None:
        ports.append(port)
        with pytest.raises(ValueError, match="not be fetched"):
            fetch("https://a.org/x.png", URLS, time.monotonic() + seconds)

    check_that_it_leaves(drip, ask)


@pytest.mark.parametrize("name", ["a.org", "b.org"])
def test_a_picture_comes_over_tls_from_the_host_of_the_certificate_alone(tmp_path, monkeypatch, name):
    """The certificate is checked for the name, although the connection uses the address."""

    class Local(images._Pinned):
        def __init__(self, host, address, deadline):
            super().__init__(host, address, deadline, port=port)

    with serving_tls(tmp_path, "a.org", encoded()) as (port, certificate):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setattr(images, "_Pinned", Local)
        monkeypatch.setattr(images, "public_address", lambda host: "127.0.0.1")
        if name == "a.org":
            assert read("https://a.org/x.png", URLS).size == (20, 10)
        else:
            with pytest.raises(ValueError, match="not be fetched"):
                read(f"https://{name}/x.png", URLS)


def test_a_name_that_is_never_resolved_is_left_at_the_deadline(monkeypatch):
    ends = threading.Event()
    monkeypatch.setattr(images.socket, "getaddrinfo", lambda *args, **kwargs: ends.wait(60))
    try:
        with pytest.raises(ValueError, match="not be fetched"):
            fetch("https://a.org/x.png", URLS, time.monotonic() + 0.2)
        assert not ends.is_set()
    finally:
        ends.set()
