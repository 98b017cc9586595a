"""Fetching: checked at every step, limited in size and time, images only."""

from __future__ import annotations

import io
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import FetchError
from mlx_magic.images.http import connection as http_connection
from mlx_magic.images.http import fetch as fetch_module
from mlx_magic.images.http.fetch import MAX_DOWNLOAD_BYTES, UrlFetcher
from mlx_magic.images.http.public_addresses import IPAddress, UrlTarget
from mlx_magic.images.opening import open_images

PUBLIC = "93.184.216.34"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Clock:
    """Seconds that pass only when a script says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


class ScriptedConnection:
    """Plays back what a server sends; ``None`` is a wait that ends without anything."""

    def __init__(
        self, *script: bytes | None, peer: str = PUBLIC, clock: Clock | None = None
    ) -> None:
        self.script = list(script)
        self.peer = peer
        self.clock = clock
        self.sent = b""
        self.closed = False
        self.timeout: float | None = None
        self.on_wait: Callable[[], None] = lambda: None

    def settimeout(self, value: float | None) -> None:
        assert value is not None
        assert value > 0
        self.timeout = value

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv_into(self, buffer: memoryview) -> int:
        if not self.script:
            return 0
        part = self.script[0]
        if part is None:
            self.script.pop(0)
            self.on_wait()
            if self.clock is not None and self.timeout is not None:
                self.clock.now += self.timeout
            raise TimeoutError
        count = min(len(buffer), len(part))
        buffer[:count] = part[:count]
        self.script[0] = part[count:]
        if not self.script[0]:
            self.script.pop(0)
        return count

    def getpeername(self) -> Any:
        return (self.peer, 80)

    def close(self) -> None:
        self.closed = True


class Network:
    """Names with addresses, and connections in the order they will be opened."""

    def __init__(self, *connections: Any, names: dict[str, list[list[str]]] | None = None) -> None:
        self.connections = list(connections)
        self.names = names or {}
        self.asked: list[tuple[str, str]] = []
        self.clock = Clock()

    def resolve(self, host: str, port: int, timeout: float) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            answers = self.names.get(host, [[PUBLIC]])
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def connect(self, target: UrlTarget, address: IPAddress, timeout: float) -> Any:
        self.asked.append((target.host, str(address)))
        connection = self.connections.pop(0)
        if isinstance(connection, Exception):
            raise connection
        return connection

    def fetcher(self) -> UrlFetcher:
        return UrlFetcher(resolve=self.resolve, connect=self.connect, clock=self.clock)


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def image_response(body: bytes | None = None, **headers: str) -> bytes:
    body = png() if body is None else body
    return answer(body, Content_Type="image/png", Content_Length=str(len(body)), **headers)


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(status=status, Location=location, Content_Length="0")


def refused(network: Network, url: str = "http://a.example/x.png") -> str:
    with pytest.raises(FetchError) as caught:
        network.fetcher()(url)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.source == url
    assert text.startswith(url)
    return text.removeprefix(url).removeprefix(" was not fetched: ")


def test_image_is_fetched_with_a_plain_get_request() -> None:
    connection = ScriptedConnection(image_response())
    network = Network(connection)
    assert network.fetcher()("http://a.example:81/dir/x.png?q=1#part") == png()
    assert network.asked == [("a.example", PUBLIC)]
    lines = connection.sent.decode().split("\r\n")
    assert lines[0] == "GET /dir/x.png?q=1 HTTP/1.1"
    assert sorted(line.partition(":")[0] for line in lines[1:] if line) == [
        "Accept", "Accept-Encoding", "Connection", "Host", "User-Agent",
    ]  # fmt: skip
    assert "Host: a.example:81" in lines
    assert connection.closed


def test_bodies_that_are_chunked_or_without_length_are_read() -> None:
    body = png()
    chunked = answer(
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        Content_Type="image/png", Transfer_Encoding="chunked",
    )  # fmt: skip
    for script in (chunked, answer(body, Content_Type="image/png")):
        parts = [script[at : at + 7] for at in range(0, len(script), 7)]
        assert Network(ScriptedConnection(*parts)).fetcher()("http://a.example/") == body


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "169.254.169.254", "10.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]"]
)
def test_private_addresses_are_never_connected_to(host: str) -> None:
    network = Network()
    assert "is not on the public internet; download it" in refused(network, f"http://{host}/x")
    assert network.asked == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1"])
def test_numeric_hosts_are_refused(host: str) -> None:
    network = Network()
    assert refused(network, f"http://{host}/x").startswith("its host is a number")
    assert network.asked == []


def test_host_that_resolves_to_a_private_address_is_refused_and_shown() -> None:
    network = Network(names={"intranet.example": [["192.168.1.7", "fd00::7"]]})
    text = refused(network, "http://intranet.example/x")
    assert "intranet.example (192.168.1.7, fd00::7) is not on the public internet" in text
    assert network.asked == []


def test_only_public_addresses_of_a_host_are_tried_in_order() -> None:
    names = {"a.example": [["127.0.0.1", "1.1.1.1", "10.0.0.1", "1.0.0.1"]]}
    good = ScriptedConnection(image_response(), peer="1.0.0.1")
    network = Network(ConnectionRefusedError(111, "Connection refused"), good, names=names)
    assert network.fetcher()("http://a.example/") == png()
    assert [address for _, address in network.asked] == ["1.1.1.1", "1.0.0.1"]


def test_dns_rebinding_reaches_only_the_checked_address() -> None:
    # The name resolves to a private address later; it is not resolved a second time.
    names = {"evil.example": [[PUBLIC], ["127.0.0.1"]]}
    network = Network(ScriptedConnection(image_response()), names=names)
    network.fetcher()("http://evil.example/")
    assert network.asked == [("evil.example", PUBLIC)]
    # A redirect to itself does look it up again, and is checked again.
    names = {"evil.example": [[PUBLIC], ["127.0.0.1"]]}
    network = Network(ScriptedConnection(redirect("/again")), names=names)
    assert "(127.0.0.1) is not on the public internet" in refused(network, "http://evil.example/")
    assert network.asked == [("evil.example", PUBLIC)]


@pytest.mark.parametrize("peer", ["127.0.0.1", "8.8.8.8"])
def test_peer_address_of_the_connection_is_checked(peer: str) -> None:
    connection = ScriptedConnection(image_response(), peer=peer)
    assert f"the connection went to {peer} and not to {PUBLIC}" in refused(Network(connection))
    assert connection.sent == b""
    assert connection.closed


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://127.0.0.1/", "127.0.0.1 is not on the public internet"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254 is not on the public"),
        ("http://[::1]:8888/", "::1 is not on the public internet"),
        ("//localhost/x", "localhost (127.0.0.1) is not on the public internet"),
        ("file:///etc/passwd", "only http and https"),
        ("ftp://example.org/x", "only http and https"),
        ("http://u:p@example.org/", "user name or a password"),
        ("http://2130706433/", "its host is a number"),
        ("http://[oops", "an invalid address"),
        ("", "redirects without a target"),
    ],
)
def test_every_redirect_is_checked(location: str, words: str) -> None:
    first = ScriptedConnection(redirect(location))
    network = Network(first, names={"a.example": [[PUBLIC]], "localhost": [["127.0.0.1"]]})
    assert words in refused(network)
    assert network.asked == [("a.example", PUBLIC)]
    assert first.closed


def test_each_redirect_is_a_new_request() -> None:
    network = Network(
        ScriptedConnection(redirect("b/c d.png?é", "301 Moved Permanently")),
        ScriptedConnection(redirect("https://b.example/e", "307 Temporary Redirect")),
        last := ScriptedConnection(image_response()),
    )
    assert network.fetcher()("http://a.example/dir/x") == png()
    assert [host for host, _ in network.asked] == ["a.example", "a.example", "b.example"]
    assert last.sent.startswith(b"GET /e HTTP/1.1")


def test_number_of_redirects_is_limited() -> None:
    network = Network(*(ScriptedConnection(redirect("/loop")) for _ in range(6)))
    assert refused(network) == "it redirects more than 5 times."
    assert len(network.asked) == 6


def test_redirect_from_https_to_http_is_refused() -> None:
    network = Network(ScriptedConnection(redirect("http://a.example/")))
    assert "from https to unprotected http" in refused(network, "https://a.example/")


def test_body_with_too_large_content_length_is_not_read() -> None:
    head = answer(Content_Type="image/png", Content_Length=str(MAX_DOWNLOAD_BYTES + 1))
    connection = ScriptedConnection(head, png())
    assert refused(Network(connection)) == "it is larger than 20 MB."
    assert connection.script


def test_body_larger_than_the_limit_stops_during_the_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch_module, "MAX_DOWNLOAD_BYTES", 200_000)
    endless = [answer(Content_Type="image/png"), png(), *[b"x" * 65_536] * 20]
    connection = ScriptedConnection(*endless)
    assert "it is larger than 200 KB" in refused(Network(connection))
    assert len(connection.script) > 10


def test_slow_body_stops_at_the_deadline() -> None:
    network = Network()
    drips: list[bytes | None] = [answer(Content_Type="image/png") + png()[:20]]
    for _ in range(1000):
        drips += [None, b"x"]
    network.connections = [ScriptedConnection(*drips, clock=network.clock)]
    assert refused(network) == "it took more than 20 seconds."
    assert network.clock.now == pytest.approx(1020, abs=0.2)


def test_slow_headers_stop_at_the_deadline() -> None:
    network = Network()
    drips: list[bytes | None] = [b"HTTP/1.1 200 OK\r\nX-Slow: "]
    for _ in range(1000):
        drips += [None, b"x"]
    network.connections = [ScriptedConnection(*drips, clock=network.clock)]
    assert refused(network) == "it took more than 20 seconds."


def test_deadline_covers_all_redirects() -> None:
    network = Network()
    waits: list[bytes | None] = [None] * 90
    network.connections = [
        ScriptedConnection(*waits, redirect("/next"), clock=network.clock) for _ in range(3)
    ]
    assert refused(network) == "it took more than 20 seconds."
    assert len(network.asked) == 3


def test_cancel_is_noticed_while_the_server_is_silent() -> None:
    token = CancelToken()
    connection = ScriptedConnection(answer(Content_Type="image/png"), None, None, png())
    connection.on_wait = token.cancel
    network = Network(connection)
    with pytest.raises(Cancelled):
        network.fetcher()("http://a.example/", cancel=token)
    assert connection.script == [None, png()]
    assert connection.closed


def test_fetch_cancelled_before_start_sends_no_request() -> None:
    token, network = CancelToken(), Network()
    token.cancel()
    with pytest.raises(Cancelled):
        network.fetcher()("http://a.example/", cancel=token)
    assert network.asked == []


def test_responses_that_are_not_images_are_refused() -> None:
    page = ScriptedConnection(answer(b"<html>" * 200, Content_Type="text/html"), b"more")
    assert refused(Network(page)) == "it sent text/html, not an image."
    assert page.script
    # What calls itself an image is for the decoder to judge; an image under a wrong name is one.
    unknown = answer(b"\x00\x01\x02", Content_Type="image/x-unknown")
    assert Network(ScriptedConnection(unknown)).fetcher()("http://a.example/") == b"\x00\x01\x02"
    for kind in ("application/octet-stream", "text/plain"):
        network = Network(ScriptedConnection(answer(png(), Content_Type=kind)))
        assert network.fetcher()("http://a.example/") == png()


def test_compressed_content_encoding_is_refused() -> None:
    packed = ScriptedConnection(image_response(Content_Encoding="gzip"))
    assert refused(Network(packed)) == "it is compressed (gzip), which is not read here."


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            answer(png(), Content_Type="image/png", Content_Length="9999"),
            "the download was cut short",
        ),
        (
            answer(b"ff\r\nabc", Content_Type="image/png", Transfer_Encoding="chunked"),
            "cut short",
        ),
        (answer(status="404 Not Found"), "the server answered 404 Not Found"),
        (answer(status="500 <b>hi</b>"), "the server answered 500 Internal Server Error"),
        (answer(status="206 Partial Content"), "the server answered 206"),
        (answer(status="304 Not Modified"), "the server answered 304"),
        (b"", "a.example failed"),
        (b"SSH-2.0-OpenSSH\r\n", "a.example failed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, "a.example failed"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "a.example failed"),
    ],
)
def test_server_errors_are_one_line(script: bytes, words: str) -> None:
    connection = ScriptedConnection(script) if script else ScriptedConnection()
    assert re.search(words, refused(Network(connection)))
    assert connection.closed


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (TimeoutError("timed out"), "a.example did not answer in time"),
        (ConnectionRefusedError(111, "Connection refused"), "a.example failed (Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "(Name or service not known)"),
    ],
)
def test_connection_failures_are_one_line(failure: OSError, words: str) -> None:
    assert words in refused(Network(failure))


def test_host_without_an_address_is_an_image_error() -> None:
    assert refused(Network(names={"a.example": [[]]})) == "a.example has no address."

    def unknown(host: str, port: int, timeout: float) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(FetchError, match=r"a\.example failed \(Name or service not known\)"):
        UrlFetcher(resolve=unknown)("http://a.example/")


def test_proxies_are_ignored_and_named_when_the_fetch_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://10.0.0.1:3128")
    network = Network(ScriptedConnection(image_response()))
    assert network.fetcher()("http://a.example/") == png()
    assert network.asked == [("a.example", PUBLIC)]
    assert "proxies of the environment are not used here" in refused(Network(TimeoutError()))


def test_real_resolver_resolves_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert http_connection.resolve_name("127.0.0.1", 80, 5) == ["127.0.0.1"]
    release = threading.Event()

    def stuck(*args: Any, **options: Any) -> Any:
        release.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    with pytest.raises(TimeoutError):
        http_connection.resolve_name("a.example", 80, 0.01)
    release.set()

    def broken(*args: Any, **options: Any) -> Any:
        raise UnicodeError("label too long")

    monkeypatch.setattr(socket, "getaddrinfo", broken)
    with pytest.raises(OSError, match="label too long"):
        http_connection.resolve_name("a.example", 80, 5)


class Site(BaseHTTPRequestHandler):
    """Serves one image and one redirect to this machine."""

    def do_GET(self) -> None:
        if self.path == "/home":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.2:1/")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(png())))
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def serving(wrap: Callable[[socket.socket], socket.socket] | None = None) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        if wrap is not None:
            server.socket = wrap(server.socket)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def at_home(host: str, port: int, timeout: float) -> list[str]:
    return ["127.0.0.1"]


def this_machine(address: IPAddress) -> bool:
    return str(address) == "127.0.0.1"


def test_real_server_is_reached_over_a_real_socket() -> None:
    fetch = UrlFetcher(allowed=this_machine)
    with serving() as port:
        url = f"http://127.0.0.1:{port}"
        (image,) = open_images(f"{url}/x.png", fetch=fetch)
        assert (image.size, image.source) == ((4, 3), f"{url}/x.png")
        with pytest.raises(FetchError, match=r"127\.0\.0\.2 is not on the public internet"):
            fetch(f"{url}/home")
        # Without `allowed`, the same address is refused.
        with pytest.raises(FetchError, match=r"127\.0\.0\.1 is not on the public internet"):
            open_images(f"{url}/x.png")


def test_closed_port_is_an_image_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(FetchError, match=r"127\.0\.0\.1 failed \(Connection refused\)"):
            UrlFetcher(allowed=this_machine)(f"http://127.0.0.1:{port}/")


def test_certificate_must_match_the_host(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    certificate = tmp_path / "host.pem"
    certificate.write_bytes(self_signed("a.example"))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)

    def wrap(plain: socket.socket) -> socket.socket:
        return server_side.wrap_socket(plain, server_side=True)

    fetch = UrlFetcher(resolve=at_home, allowed=this_machine)
    with serving(wrap) as port:
        with pytest.raises(FetchError, match="certificate is not valid"):
            fetch(f"https://a.example:{port}/x.png")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(f"https://a.example:{port}/x.png") == png()
        with pytest.raises(FetchError, match=r"certificate is not valid \(Hostname mismatch"):
            fetch(f"https://b.example:{port}/x.png")


def self_signed(name: str) -> bytes:
    """Return a certificate for a name, and its key, as PEM."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
