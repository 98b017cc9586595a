"""Hostile servers, each a script over a real socket."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from PIL import Image

Serve = Callable[[socket.socket], None]

CASES: dict[str, Case] = {}
"""By name."""


@dataclass(frozen=True)
class Case:
    """A server's behavior, and what must come of asking it.

    Attributes
    ----------
    serve : callable
        Talks over an accepted connection; ends when the other side hangs up.
    says : str or None
        What the error's line must hold; None where the image arrives.
    """

    serve: Serve
    says: str | None


def case(says: str | None) -> Callable[[Serve], Serve]:
    """Make a function a case, under its name."""

    def add(serve: Serve) -> Serve:
        CASES[serve.__name__] = Case(serve, says)
        return serve

    return add


def image_bytes() -> bytes:
    """Return a small PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
    return buffer.getvalue()


def head(*lines: str, status: str = "HTTP/1.1 200 OK", kind: str = "image/png") -> bytes:
    """Return the beginning of an answer."""
    return "\r\n".join([status, f"Content-Type: {kind}", *lines, "", ""]).encode("latin-1")


def endless(connection: socket.socket, piece: bytes) -> None:
    """Send a piece repeatedly until the client disconnects."""
    block = piece * max(1, 65_536 // len(piece))
    while True:
        connection.sendall(block)


def drip(connection: socket.socket, piece: bytes = b"x") -> None:
    """Send a piece at intervals until the client disconnects."""
    connection.settimeout(0.02)
    while True:
        connection.sendall(piece)
        with suppress(TimeoutError):
            if not connection.recv(1):
                return


@contextmanager
def serving(serve: Serve) -> Iterator[int]:
    """Serve one behavior on a port of this machine, to every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def talk(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                if serve not in UNASKED:
                    connection.recv(65_536)
                serve(connection)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threads.append(threading.Thread(target=talk, args=(connection,)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


# Chunks


@case("127.0.0.1")  # what http.client makes of it depends on Python's version
def chunk_of_negative_size(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked") + b"%x\r\n" % 600 + bytes(600) + b"\r\n")
    connection.sendall(b"-5dc00000\r\n")
    endless(connection, b"x")


@case("sent too many headers, or far more than the image")
def chunks_of_minus_one(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked") + b"-1\r\n")
    endless(connection, b"x")


@case("larger than 200 KB")
def chunk_of_an_exabyte(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked") + b"fffffffffffffff\r\n")
    endless(connection, b"x")


@case("sent too many headers, or far more than the image")
def chunks_of_one_byte(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked"))
    endless(connection, b"1\r\nx\r\n")


@case("sent too many headers, or far more than the image")
def chunk_extensions_without_end(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked"))
    endless(connection, b"1;" + b"e" * 60_000 + b"\r\nx\r\n")


@case("failed")
def chunk_size_line_without_end(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked"))
    endless(connection, b"0")


@case("sent too many headers, or far more than the image")
def trailers_without_end(connection: socket.socket) -> None:
    body = image_bytes()
    connection.sendall(head("Transfer-Encoding: chunked"))
    connection.sendall(b"%x\r\n%s\r\n0\r\n" % (len(body), body))
    endless(connection, b"X-Trailer: y\r\n")


@case("cut short")
def chunk_sizes_that_are_no_numbers(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked") + b"image\r\n" + image_bytes())


@case("cut short")
def end_in_the_middle_of_a_chunk(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked") + b"ff\r\n" + image_bytes()[:20])


@case(None)
def chunks_as_they_should_be(connection: socket.socket) -> None:
    body = image_bytes()
    connection.sendall(head("Transfer-Encoding: chunked"))
    connection.sendall(b"%x;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(body), body))


# Lengths


@case(None)
def length_that_is_negative(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: -5") + image_bytes())


@case("larger than 200 KB")
def length_that_is_negative_before_a_flood(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: -5"))
    endless(connection, b"x")


@case("larger than 200 KB")
def length_of_an_exabyte(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 1152921504606846976"))
    endless(connection, b"x")


@case("larger than 200 KB")
def length_of_five_thousand_digits(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: " + "9" * 5_000))
    endless(connection, b"x")


@case("cut short after 71 of 9999 bytes")
def length_that_is_too_long(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 9999") + image_bytes()[:71])


@case(None)
def two_lengths_of_which_the_first_is_right(connection: socket.socket) -> None:
    body = image_bytes()
    connection.sendall(head(f"Content-Length: {len(body)}", "Content-Length: 9") + body)


@case("larger than 200 KB")
def length_of_ten_and_chunks_without_end(connection: socket.socket) -> None:
    connection.sendall(head("Content-Length: 10", "Transfer-Encoding: chunked"))
    endless(connection, b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n")


@case("larger than 200 KB")
def body_without_length_or_end(connection: socket.socket) -> None:
    connection.sendall(head())
    endless(connection, b"x")


# Headers


@case("failed")
def headers_without_end(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    endless(connection, b"X-Header: y\r\n")


@case("failed")
def header_line_without_end(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Header: ")
    endless(connection, b"y")


@case("too many headers")
def headers_of_sixty_kilobytes_each(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    endless(connection, b"X-Header: " + b"y" * 60_000 + b"\r\n")


@case("failed")
def status_line_without_end(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 ")
    endless(connection, b"O")


@case("too many headers")
def interim_answers_without_end(connection: socket.socket) -> None:
    endless(connection, b"HTTP/1.1 100 Continue\r\n\r\n")


@case(None)
def one_interim_answer(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" + head() + image_bytes())


@case("the server answered 103")
def early_hints_without_end(connection: socket.socket) -> None:
    endless(connection, b"HTTP/1.1 103 Early Hints\r\n\r\n")


@case("failed")
def status_that_is_no_number(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 OK OK\r\n\r\n" + image_bytes())


@case("failed")
def version_of_tomorrow(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/9.9 200 OK\r\n\r\n" + image_bytes())


@case("failed")
def noise(connection: socket.socket) -> None:
    connection.sendall(bytes(range(256)) * 300)


@case("failed")
def nothing_at_all(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


@case("compressed (gzip)")
def packed_though_not_asked_for(connection: socket.socket) -> None:
    connection.sendall(head("Content-Encoding: gzip") + bytes(100))


@case("compressed (identity, br)")
def packed_in_a_second_header(connection: socket.socket) -> None:
    connection.sendall(head("Content-Encoding: identity", "Content-Encoding: br") + bytes(100))


@case("sent as gzip, chunked")
def transfer_that_is_packed(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n")


@case("text/html, not an image")
def web_page_without_end(connection: socket.socket) -> None:
    connection.sendall(head(kind="text/html"))
    endless(connection, b"<p>")


@case("not an image")
def header_of_odd_bytes(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\x1b[2J; x=\x00\r\n\r\nno")


# Redirects


def redirect(location: str) -> bytes:
    """Return an answer that sends elsewhere."""
    return head(f"Location: {location}", status="HTTP/1.1 302 Found")


@case("redirects more than 5 times")
def redirects_in_a_circle(connection: socket.socket) -> None:
    connection.sendall(redirect("/again"))


@case("user name or a password")
def redirect_with_a_password(connection: socket.socket) -> None:
    connection.sendall(redirect("http://user:secret@127.0.0.1/"))


@case("only http and https")
def redirect_to_a_file(connection: socket.socket) -> None:
    connection.sendall(redirect("file:///etc/passwd"))


@case("belongs to one network interface")
def redirect_to_a_scoped_address(connection: socket.socket) -> None:
    connection.sendall(redirect("http://[fe80::1%25lo]/"))


@case("is not on the public internet")
def redirect_to_digits_of_another_script(connection: socket.socket) -> None:
    # Full-width digits, as UTF-8: they are 10.0.0.1 once the name is made ASCII.
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://" +
                       "\uff11\uff10.0.0.1".encode() + b"/\r\n\r\n")  # fmt: skip


@case("not a valid address")
def redirect_to_an_odd_port(connection: socket.socket) -> None:
    connection.sendall(redirect("http://example.org:99999999/"))


@case("not a valid address")
def redirect_to_a_port_of_a_thousand_characters(connection: socket.socket) -> None:
    connection.sendall(redirect("http://example.org:" + "-1" * 500 + "/"))


@case("longer than 8192 characters")
def redirect_to_a_very_long_address(connection: socket.socket) -> None:
    connection.sendall(redirect("/" + "x" * 60_000))


@case("redirects without a target")
def redirect_without_a_location(connection: socket.socket) -> None:
    connection.sendall(head(status="HTTP/1.1 302 Found"))


@case("is not on the public internet")
def redirect_to_metadata(connection: socket.socket) -> None:
    connection.sendall(redirect("http://168.63.129.16/machine?comp=goalstate"))


# Slowness


@case("more than 1 seconds")
def body_that_drips(connection: socket.socket) -> None:
    connection.sendall(head() + image_bytes()[:30])
    drip(connection)


@case("more than 1 seconds")
def headers_that_drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    drip(connection)


@case("more than 1 seconds")
def interim_answers_that_drip(connection: socket.socket) -> None:
    drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n")


@case("more than 1 seconds")
def chunks_that_drip(connection: socket.socket) -> None:
    connection.sendall(head("Transfer-Encoding: chunked"))
    drip(connection, b"1\r\nx\r\n")


@case("more than 1 seconds")
def silence(connection: socket.socket) -> None:
    connection.recv(1)


TLS_CASES: dict[str, Case] = {}


def silent_handshake(connection: socket.socket) -> None:
    """Take what comes, and say nothing, until the other side hangs up."""
    while connection.recv(65_536):
        pass


def dripping_handshake(connection: socket.socket) -> None:
    """Begin a TLS record that never ends."""
    connection.sendall(b"\x16\x03\x03\x3f\xff")
    drip(connection)


def handshake_of_noise(connection: socket.socket) -> None:
    """Answer with what is no TLS."""
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


UNASKED: frozenset[Serve] = frozenset({silent_handshake, dripping_handshake, handshake_of_noise})
"""These do not wait for a request."""

TLS_CASES["silent_handshake"] = Case(silent_handshake, "did not answer in time")
TLS_CASES["dripping_handshake"] = Case(dripping_handshake, "did not answer in time")
TLS_CASES["handshake_of_noise"] = Case(handshake_of_noise, "failed")
