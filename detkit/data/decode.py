"""Image file to pixels, and the refusal of every file that would give wrong ones."""

from __future__ import annotations

import io

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
_ORIENTATION_TAG = 0x0112
_END_OF_JPEG = b"\xff\xd9"


class ImageError(ValueError):
    """An image that cannot be used, because of its file or of what became of it; the message begins with its path."""


def read_image(file: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image in ``file`` as uint8 (H, W, 3) RGB.

    Grey is repeated over the channels, 16 bits are shifted down to 8, CMYK is converted, and alpha is left out. The
    EXIF orientation is applied, unless ``size`` says that the annotations count the pixels as they lie in the file.

    Args:
        file: its path. The content decides what it is, not the ending.
        size: (h, w) in px that the image must have.

    Raises:
        ImageError: there is no such file, it is no image, it is cut off, it is larger than ``MAX_PIXELS``, or it has
            another size; the message names the file.
    """
    data = _read(file)
    header = _open(file, data)
    image = _decode(file, data, header, cv2.IMREAD_COLOR)
    if size is not None and image.shape[:2] != size:
        if image.shape[1::-1] == size and _orientation(header) in _SIDEWAYS:
            image = _decode(file, data, header, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image.shape[:2] != size:
            raise ImageError(
                f"{file}: the image is {image.shape[1]} x {image.shape[0]} px (w x h), "
                f"but its annotations say {size[1]} x {size[0]}"
            )
    return image


def read_size(file: str) -> tuple[int, int]:
    """(h, w) in px of the image in ``file`` as it is shown, EXIF orientation applied, from its header alone.

    Raises:
        ImageError: as :func:`read_image`, save that a cut-off file is not noticed.
    """
    header = _open(file, _read(file))
    w, h = header.size
    return (w, h) if _orientation(header) in _SIDEWAYS else (h, w)


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise ImageError(f"{file}: {error.strerror or error}") from error
    if not data:
        raise ImageError(f"{file}: the file is empty (0 bytes)")
    return data


def _open(file: str, data: bytes) -> Image.Image:
    try:
        header = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{file}: {error}") from error
    except Exception as error:  # a damaged header can raise anything; each means that this is no usable image
        raise ImageError(f"{file}: not a readable image (known are {', '.join(FORMATS)})") from error
    w, h = header.size
    if w * h > MAX_PIXELS:
        raise ImageError(f"{file}: {w} x {h} is more than the limit of {MAX_PIXELS} pixels; cut the image into tiles")
    return header


def _decode(file: str, data: bytes, header: Image.Image, flags: int) -> np.ndarray:
    if header.format in ("JPEG", "MPO") and not data.endswith(_END_OF_JPEG):
        # OpenCV 4 fills what is missing with grey and says nothing; Pillow refuses. Bytes after the end are harmless.
        _load(file, header)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is not None:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    # OpenCV is the stricter of the two on some files whose pixels are all there (a PNG without its last chunk).
    _load(file, header)
    if header.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise ImageError(f"{file}: cannot convert {header.format} pixels of the mode {header.mode} to RGB")
    upright = header if flags & cv2.IMREAD_IGNORE_ORIENTATION else ImageOps.exif_transpose(header)
    return np.array(upright.convert("RGB"))


def _load(file: str, header: Image.Image) -> None:
    try:
        header.load()
    except Exception as error:  # as above: whatever a damaged file raises, it means that the pixels are not all there
        raise ImageError(f"{file}: cut off or damaged: {error}") from error


def _orientation(header: Image.Image) -> int:
    try:
        return int(header.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF is no reason to lose the image, and OpenCV ignores it as well
        return 1
