"""Image file to pixels, and the refusal of every file that would give wrong ones."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageOps

#: A file may unpack to this many pixels: a quarter of a GiB of RGB, where Pillow begins to warn (it raises at the
#: double). A few kilobytes of PNG can claim a thousand times more.
MAX_PIXELS = 89_478_485

#: What a header may be. Pillow's other plugins are left out: some start programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")

#: Values of the EXIF tag "Orientation" that exchange width and height.
_SIDEWAYS = (5, 6, 7, 8)
#: Those that exchange top and bottom, or left and right; of sideways ones after width and height.
_UPSIDE_DOWN, _MIRRORED = (3, 4, 7, 8), (2, 3, 6, 7)
_WIDTH_TAG, _HEIGHT_TAG, _ORIENTATION_TAG = 0x0100, 0x0101, 0x0112
#: TIFF's "ExtraSamples": 2 is an alpha that is not in the colours yet, and libtiff multiplies it into them; 0 is none.
_EXTRA_TAG, _ALPHA_APART, _NO_MEANING = 0x0152, 2, 0
#: TIFF's "SampleFormat", and what OpenCV takes for unsigned numbers: -1 would become white.
_FORMAT_TAG, _NOT_UNSIGNED = 0x0153, {2: "signed", 3: "floating-point"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END_OF_JPEG = b"\xff\xd9"

#: Formats whose values may have more than 8 bits; the byte of a PNG that says how many; and how OpenCV keeps them all.
_DEEP, _PNG_DEPTH = ("PNG", "TIFF", "PPM", "JPEG2000"), 24
#: The head of a PPM or PGM: its kind, width, height, and the number that is white; comments may stand between.
_PPM_HEAD = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)")
_AS_DEEP_AS_IT_IS = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION


class ImageError(ValueError):
    """An image that cannot be used, because of its file or of what became of it; the message begins with its path."""


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Within the block what a transform has to say names ``file``."""
    try:
        yield
    except ImageError:
        raise  # it names the file of a partner
    except ValueError as error:
        raise ImageError(f"{file}: {error}") from error
    except Exception as error:
        error.add_note(f"while transforming {file}")
        raise


def read_image(file: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image in ``file`` as uint8 (H, W, 3) RGB.

    Grey is repeated over the channels, 16 bits are shifted down to 8, what is white in a PPM becomes white, CMYK is
    converted, and alpha is left out. The EXIF orientation is applied, unless ``size`` says that the annotations count
    the pixels as they lie in the file.

    Args:
        file: its path. The content decides what it is, not the ending.
        size: (h, w) in px that the image must have.

    Raises:
        ImageError: there is no such file, it is no image, it is cut off, it is larger than ``MAX_PIXELS``, or it has
            another size; the message names the file.
    """
    data = _read(file)
    header = _open(file, io.BytesIO(data))
    orientation = _orientation(header)
    if header.format == "TIFF" and (orientation != 1 or _first_extra(header) == _ALPHA_APART):
        # libtiff's readers turn the pixels each in its own way, if at all: they get a file that says nothing of it.
        data = _tiff_as_it_lies(data)
        header = _open(file, io.BytesIO(data))
    lying = _decode(file, data, header)
    if size is not None and _lies(size, (lying.shape[0], lying.shape[1]), orientation):
        return lying
    image = _turned(lying, orientation)
    if size is not None and image.shape[:2] != size:
        raise ImageError(
            f"{file}: the image is {image.shape[1]} x {image.shape[0]} px (w x h), "
            f"but its annotations say {size[1]} x {size[0]}"
        )
    return image


def pixels_of(picture: Image.Image, name: str) -> np.ndarray:
    """A picture of Pillow's as :func:`read_image` would give its file, EXIF orientation applied.

    Raises:
        ImageError: it is cut off or empty, or its numbers are no grey levels or colours of 8 or 16 bits; the message
            begins with ``name``.
    """
    _load(name, picture)
    if 0 in picture.size:
        raise ImageError(f"{name}: {picture.width} x {picture.height} px hold nothing")
    return _rgb(name, ImageOps.exif_transpose(picture))


def read_size(file: str) -> tuple[int, int]:
    """(h, w) in px of the image in ``file`` as it is shown, EXIF orientation applied, from its header alone.

    Only WebP is read whole, as Pillow's decoder asks.

    Raises:
        ImageError: as :func:`read_image`, save that a cut-off file is not noticed.
    """
    (h, w), orientation = _read_header(file)
    return (w, h) if orientation in _SIDEWAYS else (h, w)


def has_pages(file: str) -> bool:
    """Whether ``file`` has more pages or frames than the first, which is all that :func:`read_image` reads.

    A JPEG's further pictures are previews and depth, which nobody asks for. What cannot be read has none.
    """
    try:
        with open(file, "rb") as stream:
            header = _open(file, stream)
            return header.format in ("TIFF", "GIF", "WEBP", "PNG") and getattr(header, "n_frames", 1) > 1
    except Exception:  # as in _open: damaged pages can raise anything
        return False


def bits_used(file: str) -> tuple[int, int] | None:
    """Bits of a value in ``file``, and how many of them its greatest value takes; None where there are 8.

    :func:`read_image` keeps the upper 8: of pictures of a 12-bit camera in 16-bit files little is left.

    Raises:
        ImageError: as :func:`read_image`.
    """
    data = _read(file)
    header = _open(file, io.BytesIO(data))
    if header.format not in _DEEP or (header.format == "PNG" and data[_PNG_DEPTH] <= 8):
        return None
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), _AS_DEEP_AS_IT_IS)
    except cv2.error:
        return None
    if values is None or values.dtype != np.uint16:
        return None
    return 16, (int(values.max()) * 65535 // (_white(data, header) or 65535)).bit_length()


def orientation_left_out(file: str, size: tuple[int, int]) -> int:
    """The EXIF orientation that :func:`read_image` does not apply to ``file``, whose annotations say ``size`` (h, w).

    1, which turns nothing, where they count the pixels as they are shown.

    Raises:
        ImageError: as :func:`read_size`.
    """
    raw, orientation = _read_header(file)
    return orientation if _lies(size, raw, orientation) else 1


def turned_corners(corners: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Boxes (N, 4) x1 y1 x2 y2 px that count pixels as they lie, in the frame of the image as it is shown.

    Args:
        corners: inside the image as it lies.
        size: (h, w) px of the image as it lies.
        orientation: EXIF's, 1 to 8.
    """
    h, w = size
    if orientation in _SIDEWAYS:
        corners, (h, w) = corners[:, [1, 0, 3, 2]], (w, h)
    if orientation in _UPSIDE_DOWN:
        corners = np.abs(corners[:, [0, 3, 2, 1]] - [0, h, 0, h])
    if orientation in _MIRRORED:
        corners = np.abs(corners[:, [2, 1, 0, 3]] - [w, 0, w, 0])
    return corners


def _read_header(file: str) -> tuple[tuple[int, int], int]:
    """(h, w) px as the pixels lie in the file, and the EXIF orientation."""
    try:
        with open(file, "rb", buffering=0) as stream:
            if not os.fstat(stream.fileno()).st_size:
                raise ImageError(f"{file}: the file is empty (0 bytes)")
            header = _open(file, stream)
            w, h = _raw_size(header)
            return (h, w), _orientation(header)
    except OSError as error:
        raise ImageError(f"{file}: {error.strerror or error}") from error


def _lies(size: tuple[int, int], raw: tuple[int, int], orientation: int) -> bool:
    """Whether annotations of ``size`` count the pixels as they lie in a file of ``raw`` (h, w) px.

    Only where height and width change places can that be told; else they are taken to count what is shown.
    """
    return raw == size != raw[::-1] and orientation in _SIDEWAYS


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise ImageError(f"{file}: {error.strerror or error}") from error
    if not data:
        raise ImageError(f"{file}: the file is empty (0 bytes)")
    return data


def _open(file: str, stream: IO[bytes]) -> Image.Image:
    try:
        header = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{file}: {error}") from error
    except Exception as error:  # a damaged header can raise anything; each means that this is no usable image
        raise ImageError(f"{file}: not a readable image (known are {', '.join(FORMATS)})") from error
    w, h = header.size
    if w * h > MAX_PIXELS:
        raise ImageError(f"{file}: {w} x {h} is more than the limit of {MAX_PIXELS} pixels; cut the image into tiles")
    if kind := _kind_of_numbers(header):
        raise ImageError(f"{file}: a TIFF of {kind} numbers; write unsigned ones of 8 or 16 bits")
    return header


def _kind_of_numbers(header: Image.Image) -> str | None:
    """What the numbers of a TIFF are, where they are not unsigned."""
    if header.format != "TIFF":
        return None
    said = header.tag_v2.get(_FORMAT_TAG, 1)  # pyright: ignore[reportAttributeAccessIssue]
    formats = said if isinstance(said, tuple) else (said,)
    return next((_NOT_UNSIGNED[number] for number in formats if number in _NOT_UNSIGNED), None)


def _decode(file: str, data: bytes, header: Image.Image) -> np.ndarray:
    """The pixels (H, W, 3) RGB as they lie in the file."""
    if header.format in ("JPEG", "MPO") and not data.endswith(_END_OF_JPEG):
        # OpenCV 4 fills what is missing with grey and says nothing; Pillow refuses. Bytes after the end are harmless.
        _load(file, header)
    white = _white(data, header)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | (0 if white is None else cv2.IMREAD_ANYDEPTH)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is not None:
        return cv2.cvtColor(image if white is None else _scaled(image, white), cv2.COLOR_BGR2RGB)
    # OpenCV is the stricter of the two on some files whose pixels are all there (a PNG without its last chunk).
    _load(file, header)
    return _rgb(file, header)


def _white(data: bytes, header: Image.Image) -> int | None:
    """The number that is white in a PPM, where OpenCV takes it for another: it scales those of text up to 255 alone."""
    found = _PPM_HEAD.match(data) if header.format == "PPM" else None
    white = int(found[4]) if found else 255
    return None if white in (255, 65535) or (found and found[1] in b"23" and white < 255) else white


def _scaled(values: np.ndarray, white: int) -> np.ndarray:
    """``values`` (H, W, 3) from 0 to ``white`` as uint8."""
    levels = np.rint(np.arange(white + 1) * (255 / white)).astype(np.uint8)
    return levels[np.minimum(values, white)]


def _rgb(file: str, picture: Image.Image) -> np.ndarray:
    """The pixels (H, W, 3) RGB of a loaded ``picture``: 16 bits are shifted down, where Pillow would cut at 255."""
    if picture.mode.startswith("I;16"):
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        kind = f"{picture.format} pixels" if picture.format else "pixels"
        raise ImageError(f"{file}: cannot convert {kind} of the mode {picture.mode} to RGB")
    return np.array(picture.convert("RGB"))


def _load(file: str, header: Image.Image) -> None:
    try:
        header.load()
    except Exception as error:  # as above: whatever a damaged file raises, it means that the pixels are not all there
        raise ImageError(f"{file}: cut off or damaged: {error}") from error


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """``image`` (H, W, 3) as it is shown (CIPA DC-008, Exif 2.32, 4.6.4 A: where row 0 and column 0 lie)."""
    if orientation in _SIDEWAYS:
        image = image.transpose(1, 0, 2)
    if orientation in _UPSIDE_DOWN:
        image = image[::-1]
    if orientation in _MIRRORED:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _orientation(header: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none. XMP's is left alone, as viewers and OpenCV do."""
    try:
        if header.format == "TIFF":
            value = header.tag_v2.get(_ORIENTATION_TAG, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            exif = Image.Exif()
            exif.load(header.info.get("exif") or _late_exif(header))
            value = exif.get(_ORIENTATION_TAG, 1)
        return int(value) if 1 <= int(value) <= 8 else 1
    except Exception:  # damaged EXIF is no reason to lose the image, and OpenCV ignores it as well
        return 1


def _late_exif(header: Image.Image) -> bytes:
    """The EXIF that a PNG may have after its pixels: Pillow would decode those first. Only chunk heads are read."""
    stream = getattr(header, "fp", None)
    if header.format != "PNG" or stream is None:
        return b""
    before = stream.tell()
    stream.seek(len(_PNG_SIGNATURE))
    content = b""
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            content = stream.read(length)
            break
        stream.seek(length + 4, os.SEEK_CUR)
    stream.seek(before)
    return content


def _raw_size(header: Image.Image) -> tuple[int, int]:
    """(w, h) as the pixels lie in the file; of a sideways TIFF newer versions of Pillow exchange them."""
    if header.format != "TIFF":
        return header.size
    tags = header.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    return int(tags[_WIDTH_TAG]), int(tags[_HEIGHT_TAG])


def _first_extra(header: Image.Image) -> int | None:
    """What a TIFF says of the first number of a pixel beyond its colours; None where it has no more."""
    said = header.tag_v2.get(_EXTRA_TAG)  # pyright: ignore[reportAttributeAccessIssue]
    return (said[0] if said else None) if isinstance(said, tuple) else said


def _tiff_as_it_lies(data: bytes) -> bytes:
    """``data`` of a TIFF with orientation 1, and an alpha that is nothing to its readers, in its first directory (TIFF
    6.0, section 2; BigTIFF counts in 8 bytes)."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    first, step, value = (start + 8, 20, 12) if is_big else (start + 2, 12, 8)
    changed = bytearray(data)
    for entry in range(first, first + count * step, step):
        tag = struct.unpack_from(order + "H", data, entry)[0]
        if tag == _ORIENTATION_TAG:
            struct.pack_into(order + "H", changed, entry + value, 1)
        if tag == _EXTRA_TAG:
            (number,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, entry + 4)
            place = entry + value
            if 2 * number > step - value:  # too many to stand here: their place does
                (place,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, place)
            if struct.unpack_from(order + "H", data, place)[0] == _ALPHA_APART:
                struct.pack_into(order + "H", changed, place, _NO_MEANING)
    return bytes(changed)
