"""Recognizes formats by the first bytes of a file, and gives advice for unsupported ones."""

from __future__ import annotations

SNIFF_BYTES = 512
"""Number of first bytes for `image_format` and `unsupported_reason`."""

READABLE = ("PNG", "JPEG", "GIF", "WebP", "BMP", "TIFF", "AVIF", "JPEG 2000", "PPM", "QOI")
"""Supported formats; also HEIF, where pillow-heif is installed."""

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"II+\x00": "TIFF",
    b"MM\x00+": "TIFF",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"qoif": "QOI",
}
# ISO base media files: the brand after 'ftyp' distinguishes images from videos.
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIF",
    b"heix": "HEIF",
    b"heim": "HEIF",
    b"heis": "HEIF",
    b"hevc": "HEIF",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}
# Formats that are recognized but not supported: name and advice.
_ADVICE = {
    b"%PDF-": ("a PDF document", "Export the page as a PNG"),
    b"%!PS": ("a PostScript document", "Export it as a PNG"),
    b"\x00\x00\x01\x00": ("an icon (ICO)", "Save it as a PNG"),
    b"icns": ("an icon (ICNS)", "Save it as a PNG"),
    b"8BPS": ("a Photoshop document", "Export it as a PNG"),
    b"\xff\x0a": ("a JPEG XL image", "Save it as a PNG or JPEG"),
    b"\x00\x00\x00\x0cJXL ": ("a JPEG XL image", "Save it as a PNG or JPEG"),
    b"\x93NUMPY": ("a saved NumPy array", "Load it with np.load and give the array"),
    b"PK\x03\x04": ("a ZIP archive or an Office document", "Extract the images"),
    b"\x1f\x8b": ("a gzip archive", "Unpack it"),
    b"\x1aE\xdf\xa3": ("a video", "Save one frame of it as a PNG"),
    b"version https://git-lfs": ("a Git LFS pointer", "Run git lfs pull"),
}


def image_format(head: bytes) -> str | None:
    """Return the format of an image file by its first bytes, or None.

    Parameters
    ----------
    head : bytes
        The first `SNIFF_BYTES` bytes, or the whole of a shorter file.

    Returns
    -------
    str or None
        One of `READABLE`, or ``"HEIF"``.
    """
    for start, name in _STARTS.items():
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _brand_format(head)
    # Two letters are not specific enough: check more of the header.
    if head[:2] == b"BM" and head[6:10] == b"\x00\x00\x00\x00":
        return "BMP"
    if len(head) > 3 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    return None


def unsupported_reason(head: bytes) -> str:
    """Return why a file without an `image_format` is refused, and what to do.

    Returns
    -------
    str
        Text after a name, such as ``"is a PDF document, which is not read here. Export the page
        as a PNG."``
    """
    if not head:
        return "is empty, so there is no image in it."
    for start, (what, advice) in _ADVICE.items():
        if head.startswith(start):
            return f"is {what}, which is not read here. {advice}."
    if head[4:8] == b"ftyp":
        return "is a video, which is not read here. Save one frame of it as a PNG."
    text = _as_text(head)
    if text is None:
        return f"is not an image of a supported format. Supported are {', '.join(READABLE)}."
    if "<svg" in text:
        return "is an SVG drawing, which is not read here. Export it as a PNG."
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "is a web page, not an image. Give the address of the image itself."
    return "is a text file, not an image."


def _brand_format(head: bytes) -> str | None:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    compatible = [head[at : at + 4] for at in range(16, end, 4)]
    brands = [_BRANDS[brand] for brand in (head[8:12], *compatible) if brand in _BRANDS]
    # The first brand of an AVIF file may be the general 'mif1'.
    return "AVIF" if "AVIF" in brands else next(iter(brands), None)


def _as_text(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", errors="ignore")
    # The last character may be incomplete: try without its bytes.
    for cut in range(4):
        try:
            text = head[: len(head) - cut].decode("utf-8-sig")
        except UnicodeDecodeError:
            continue
        return text if all(char.isprintable() or char.isspace() for char in text) else None
    return None
