"""Fuzz images and server responses with Hypothesis: ``python -m tools.fuzz_images MINUTES``.

Valid files of every format, and whole responses of a server, are mutated. The outcome must be an
image or a one-line `ImageError`, in time, with nothing on standard error. Add failures to
`tests/hostile`.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import tempfile
import time
import warnings
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_magic.errors import ImageError
from mlx_magic.images.http.fetch import UrlFetcher
from mlx_magic.images.opening import open_images

_SLOW = 2.0
_PUBLIC = "93.184.216.34"
_TOKENS = [
    b"\xff\xda",
    b"\xff\xc2",
    b"\xff\xc4",
    b"\xff\xd9",
    b"IDAT",
    b"IEND",
    b"fcTL",
    b"acTL",
    b"!\xfe",
    b",",
    b";",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\x1f\x40",
    b"VP8X",
    b"ANMF",
    b"ALPH",
    b"II*\0",
    b"\x11\x01\x03\0",
    b"meta",
    b"ispe",
    b"iloc",
    b"ipco",
    b"iinf",
    b"infe",
    b"pitm",
    b"grid",
    b"hvcC",
    b"mdat",
    b"#",
    b"\n",
    b"65535",
    b"9999",
]


def _samples() -> dict[str, bytes]:
    image = Image.effect_noise((24, 16), 60).convert("RGB")
    frames = [image.rotate(at) for at in (30, 60)]
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "jpeg": ("JPEG", {}),
        "progressive": ("JPEG", {"progressive": True, "comment": b"c" * 20}),
        "png": ("PNG", {}),
        "apng": ("PNG", {"save_all": True, "append_images": frames}),
        "gif": ("GIF", {"save_all": True, "append_images": frames, "comment": b"hello"}),
        "webp": ("WEBP", {"quality": 60}),
        "webp animation": ("WEBP", {"save_all": True, "append_images": frames}),
        "tiff": ("TIFF", {"save_all": True, "append_images": frames}),
        "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
        "tiff jpeg": ("TIFF", {"compression": "jpeg"}),
        "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff fax": ("TIFF", {"compression": "group4"}),
        "avif": ("AVIF", {"speed": 10}),
        "bmp": ("BMP", {}),
        "ppm": ("PPM", {}),
        "qoi": ("QOI", {}),
    }
    found = {}
    for name, (kind, options) in wanted.items():
        buffer = io.BytesIO()
        (image.convert("1") if "fax" in name else image).save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    found |= _heic_samples(image, frames)
    found["plain ppm"] = b"P3 # c\n4 3 255\n" + b"1 2 300 "[:6] * 12
    found["deep pgm"] = b"P5 4 3 1000\n" + bytes(24)
    return found


def _heic_samples(image: Image.Image, others: list[Image.Image]) -> dict[str, bytes]:
    """Return files of iPhones: one image, and several in one; none without pillow-heif."""
    if importlib.util.find_spec("pillow_heif") is None:
        return {}
    import pillow_heif

    found = {}
    for name, further in (("heic", []), ("heic of several", others)):
        file = pillow_heif.from_pillow(image)
        for other in further:
            file.add_from_pillow(other)
        buffer = io.BytesIO()
        file.save(buffer, quality=50)
        found[name] = buffer.getvalue()
    return found


SAMPLES = _samples()


@st.composite
def changed(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """Draw a sample with a few mutations."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 5)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                token = draw(st.sampled_from(_TOKENS))
                data[at : at + len(token)] = token
            case 2:
                data[at:at] = draw(st.sampled_from(_TOKENS))
            case 3:
                del data[at : at + draw(st.integers(1, 64))]
            case 4:
                data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 200))
            case _:
                del data[at:]
    return bytes(data)


def _look_at(line: str) -> None:
    assert "\n" not in line
    assert len(line) < 500


_HEARD = tempfile.TemporaryFile()  # noqa: SIM115
"""What is written to standard error while `main` runs, also by C libraries."""


def open_once(data: bytes) -> None:
    """Open a file; any outcome but an image or a one-line error is a failure."""
    _HEARD.seek(0)
    _HEARD.truncate()
    start = time.thread_time()
    try:
        (image,) = open_images(data, name="x")
        assert image.pixels.mode == "RGB"
    except ImageError as error:
        _look_at(str(error))
    assert time.thread_time() - start < _SLOW
    _HEARD.seek(0)
    assert _HEARD.read() == b""


class _Connection:
    def __init__(self, data: bytes) -> None:
        self.left = data

    def settimeout(self, value: float | None) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        pass

    def recv_into(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self.left))
        buffer[:count], self.left = self.left[:count], self.left[count:]
        return count

    def getpeername(self) -> Any:
        return (_PUBLIC, 80)

    def close(self) -> None:
        pass


_ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: image/png\r\n\r\n"
    b"5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://user@example.org:80/a?b#c\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[2606:4700::1]/\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nContent-Encoding: identity\r\n\r\nhello",
]
_WORDS = [
    b"\r\n",
    b"-1",
    b"-5dc00000",
    b"ffffffffffffffff",
    b":",
    b";",
    b"\0",
    b"\xff",
    b"chunked",
    b"[",
    b"]",
    b"%",
    b"@",
    b"//",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"Content-Length: -7\r\n",
    b"0x",
    b"_1",
    b" ",
]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Draw a server response with a few mutations."""
    data = bytearray(draw(st.sampled_from(_ANSWERS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        word = draw(st.one_of(st.sampled_from(_WORDS), st.binary(min_size=1, max_size=4)))
        end = at + draw(st.integers(0, 6))
        data[at:end] = word * draw(st.sampled_from([1, 1, 1, 2, 300]))
    return bytes(data)


def ask_once(data: bytes) -> None:
    """Fetch from a server that sends `data`; any outcome but bytes or a one-line error fails."""
    fetch = UrlFetcher(
        resolve=lambda host, port, timeout: [_PUBLIC],
        connect=lambda target, address, timeout: _Connection(data),
    )
    start = time.thread_time()
    try:
        assert isinstance(fetch("http://a.example/x.png"), bytes)
    except ImageError as error:
        _look_at(str(error))
    assert time.thread_time() - start < _SLOW


def main(minutes: float) -> int:
    """Fuzz for this time; return the number of different failures."""
    warnings.simplefilter("always")
    os.dup2(_HEARD.fileno(), 2)
    end = time.monotonic() + 60 * minutes
    failures = rounds = 0
    loud = settings(
        max_examples=400, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    while time.monotonic() < end:
        work = [(name, open_once, changed([data])) for name, data in SAMPLES.items()]
        for name, check, strategy in [*work, ("server", ask_once, answers())]:
            try:
                loud(given(strategy)(check))()
            except Exception as error:
                failures += 1
                print(f"{name}: {type(error).__name__}: {error}", *getattr(error, "__notes__", []))
            if time.monotonic() > end:
                break
        rounds += 1
    print(f"{rounds} rounds, {failures} failures")
    return failures


if __name__ == "__main__":
    raise SystemExit(1 if main(float(sys.argv[1])) else 0)
