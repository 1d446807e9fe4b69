"""Every kind of picture file that a data set may hold, whole and broken."""

import io
import re
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.data.decode import (
    MAX_PIXELS,
    ImageError,
    _tiff_as_it_lies,
    bits_used,
    has_pages,
    pixels_of,
    read_image,
    read_size,
)
from tests.data.builders import picture

RGB = picture(48, 64)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write(tmp_path, content: bytes, name: str = "a.jpg") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


def sideways(kind: str = "JPEG", orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(RGB), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_to_the_bit_as_rgb(tmp_path, kind):
    np.testing.assert_array_equal(read_image(write(tmp_path, encode(Image.fromarray(RGB), kind))), RGB)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})])
def test_lossy_formats_are_near(tmp_path, kind, options):
    image = read_image(write(tmp_path, encode(Image.fromarray(RGB), kind, **options)))
    assert np.abs(image.astype(int) - RGB).mean() < 8


def test_the_content_decides_and_not_the_ending(tmp_path):
    np.testing.assert_array_equal(read_image(write(tmp_path, encode(Image.fromarray(RGB), "PNG"), "a.jpg")), RGB)


def test_gray_is_repeated(tmp_path):
    gray = Image.fromarray(RGB).convert("L")
    image = read_image(write(tmp_path, encode(gray, "PNG")))
    np.testing.assert_array_equal(image, np.repeat(np.asarray(gray)[..., None], 3, axis=2))


def test_16_bits_are_shifted_down(tmp_path):
    values = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    image = read_image(write(tmp_path, cv2.imencode(".png", values)[1].tobytes()))
    np.testing.assert_array_equal(image[..., 0], values >> 8)


@pytest.mark.parametrize("kind", ["L", "1", "P", "RGBA", "CMYK", "16 bits", "turned"])
def test_a_picture_of_pillows_is_what_its_file_is(tmp_path, kind):
    values = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    if kind == "turned":
        content = sideways("PNG")
    else:
        made = Image.fromarray(values) if kind == "16 bits" else Image.fromarray(RGB).convert(kind)
        content = encode(made, "TIFF" if kind == "CMYK" else "PNG")
    file = write(tmp_path, content)
    with Image.open(file) as opened:
        np.testing.assert_array_equal(pixels_of(opened, "image 1"), read_image(file))


def test_16_bits_of_either_order_are_shifted_down():
    for mode in ("I;16", "I;16B"):
        assert pixels_of(Image.new(mode, (4, 3), 0x1234), "image 1").tolist() == [[[0x12] * 3] * 4] * 3


def test_a_picture_of_pillows_that_is_none_is_named(tmp_path):
    with Image.open(write(tmp_path, encode(Image.fromarray(RGB), "JPEG")[:-200])) as cut:
        for made, words in (
            (cut, "cut off or damaged: "),
            (Image.new("RGB", (0, 5)), "0 x 5 px hold nothing"),
            (Image.new("F", (4, 4)), "cannot convert pixels of the mode F to RGB"),
            (Image.new("I", (4, 4), 70_000), "cannot convert pixels of the mode I to RGB"),
        ):
            with pytest.raises(ImageError, match=f"^image 3: {words}"):
                pixels_of(made, "image 3")


def test_alpha_is_left_out(tmp_path):
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 128, np.uint8)])
    np.testing.assert_array_equal(read_image(write(tmp_path, encode(Image.fromarray(rgba), "PNG"))), RGB)


@pytest.mark.parametrize("options", [{}, {"big_tiff": True}, {"compression": "tiff_lzw"}, {"tiffinfo": {0x0112: 6}}])
def test_colours_under_a_tiffs_alpha_are_left_as_they_are(tmp_path, options):
    """libtiff would multiply it into them: what is transparent, as beside a map's border, would be black."""
    rgba = np.dstack([RGB, np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))])
    image = read_image(write(tmp_path, encode(Image.fromarray(rgba), "TIFF", **options)))
    np.testing.assert_array_equal(image, TURNED[6] if "tiffinfo" in options else RGB)


def test_a_tiffs_alpha_is_found_where_more_numbers_follow_it(tmp_path):
    """Of three extra ones what they are stands elsewhere in the file."""
    content = bytearray(encode(Image.fromarray(np.dstack([RGB, RGB[..., :1] // 2])), "TIFF"))
    entry = content.index(struct.pack("<HHI", 0x0152, 3, 1))
    content += b"\0" * (len(content) % 2)
    struct.pack_into("<HHII", content, entry, 0x0152, 3, 3, len(content))
    content += struct.pack("<3H", 2, 0, 0)
    changed = _tiff_as_it_lies(bytes(content))
    assert changed[-6:] == bytes(6)
    assert changed[:-6] == content[:-6]


@pytest.mark.parametrize("white", [1, 15, 100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_white_is_what_a_ppm_says(tmp_path, kind, white):
    """OpenCV scales text of up to 8 bits alone, and a camera's 12 bits would come out nearly black."""
    shares = (RGB if kind in ("P3", "P6") else RGB[..., :1]) / 255
    values = np.rint(shares * white).astype(int)
    text = " ".join(map(str, values.reshape(-1))).encode() + b"\n"
    body = text if kind in ("P2", "P3") else values.astype(np.uint8 if white < 256 else ">u2").tobytes()
    file = write(tmp_path, f"{kind}\n# 7 8 9\n64 48\n{white}\n".encode() + body, "a.ppm")
    assert np.abs(read_image(file) - values * 255 / white).max() <= 1
    assert bits_used(file) == ((16, 16) if white > 255 else None)


def test_cmyk_is_converted_and_not_inverted(tmp_path):
    image = read_image(write(tmp_path, encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98)))
    assert image.shape == RGB.shape
    assert np.abs(image.astype(int) - RGB).mean() < 4


def test_palette_and_one_bit(tmp_path):
    for mode in ("P", "1"):
        converted = Image.fromarray(RGB).convert(mode)
        image = read_image(write(tmp_path, encode(converted, "PNG")))
        np.testing.assert_array_equal(image, np.asarray(converted.convert("RGB")))


def test_one_pixel(tmp_path):
    file = write(tmp_path, encode(Image.fromarray(RGB[:1, :1]), "PNG"))
    np.testing.assert_array_equal(read_image(file), RGB[:1, :1])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(tmp_path, kind):
    file = write(tmp_path, sideways(kind))
    upright = np.rot90(RGB, -1)  # 6: the first row is the right side of what is shown
    image = read_image(file)
    assert read_size(file) == image.shape[:2] == upright.shape[:2] == (64, 48)
    assert np.abs(image.astype(int) - upright).mean() < 8


def test_exif_orientation_is_not_applied_where_the_annotations_count_raw_pixels(tmp_path):
    file = write(tmp_path, sideways())
    assert np.abs(read_image(file, (48, 64)).astype(int) - RGB).mean() < 8
    assert read_image(file, (64, 48)).shape == (64, 48, 3)


def test_exif_without_exchange_of_sides_changes_no_size(tmp_path):
    file = write(tmp_path, sideways(orientation=3))
    assert read_size(file) == (48, 64)
    assert np.abs(read_image(file, (48, 64)).astype(int) - RGB[::-1, ::-1]).mean() < 8


def test_a_size_that_disagrees_names_the_file_and_both(tmp_path):
    file = write(tmp_path, encode(Image.fromarray(RGB), "PNG"))
    message = f"{file}: the image is 64 x 48 px (w x h), but its annotations say 65 x 48"
    with pytest.raises(ImageError, match=f"^{re.escape(message)}$"):
        read_image(file, (48, 65))


def test_sides_exchanged_without_exif_are_an_error(tmp_path):
    file = write(tmp_path, encode(Image.fromarray(RGB), "PNG"))
    with pytest.raises(ImageError, match="annotations say 48 x 64"):
        read_image(file, (64, 48))


def refused(file: str, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^{re.escape(file)}: {reason}"):
        read_image(file)


def test_missing_folder_and_empty_file(tmp_path):
    refused(str(tmp_path / "no.jpg"), "No such file or directory$")
    refused(str(tmp_path), "Is a directory$")
    refused(write(tmp_path, b""), r"the file is empty \(0 bytes\)$")


def test_something_else_than_an_image(tmp_path):
    refused(write(tmp_path, b"<html>404</html>" * 20), r"not a readable image \(known are JPEG, PNG, BMP")


def test_postscript_is_not_run(tmp_path):
    refused(write(tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"), "not a readable image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_cut_off(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise), kind)
    refused(write(tmp_path, content[: int(len(content) * share)]), "(cut off or damaged|not a readable image)")


@pytest.mark.parametrize("missing", [2, 30, 400])
def test_cut_off_jpeg_is_found_even_where_opencv_fills_it_with_gray(tmp_path, monkeypatch, missing):
    # OpenCV 4 returns a picture for such a file, OpenCV 5 none: behave like the former.
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.full((48, 64, 3), 128, np.uint8))
    content = encode(Image.fromarray(RGB), "JPEG", quality=95)
    assert read_image(write(tmp_path, content)).shape == (48, 64, 3)
    refused(write(tmp_path, content[:-missing]), "cut off or damaged: image file is truncated")


def test_bytes_after_the_end_of_a_jpeg_are_harmless(tmp_path):
    whole = encode(Image.fromarray(RGB), "JPEG")
    expected = read_image(write(tmp_path, whole))
    for tail in (b"\0" * 50, b"made by a phone" * 20):
        np.testing.assert_array_equal(read_image(write(tmp_path, whole + tail)), expected)


def test_a_png_without_its_last_chunk_still_has_all_pixels(tmp_path):
    content = encode(Image.fromarray(RGB), "PNG")
    np.testing.assert_array_equal(read_image(write(tmp_path, content[:-12])), RGB)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9500, 20000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, side, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)  # not called
    content = encode(Image.new("1", (side, side)), "PNG")
    assert len(content) < 100_000 < MAX_PIXELS < side * side
    file = write(tmp_path, content, "bomb.png")
    with pytest.raises(ImageError, match=rf"^{re.escape(file)}: .*(limit of {MAX_PIXELS} pixels|exceeds limit)"):
        read_image(file)


TURNED = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1),
    7: RGB.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(RGB),
}
CONTAINERS = {
    "JPEG": {"kind": "JPEG"},
    "PNG": {"kind": "PNG"},
    "WebP": {"kind": "WEBP", "lossless": True},
    "TIFF": {"kind": "TIFF"},
    "BigTIFF": {"kind": "TIFF", "big_tiff": True},
    "TIFF, LZW": {"kind": "TIFF", "compression": "tiff_lzw"},
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("container", CONTAINERS)
def test_size_and_pixels_agree_for_every_orientation(tmp_path, container, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = write(tmp_path, encode(Image.fromarray(RGB), exif=exif, **CONTAINERS[container]))
    image = read_image(file)
    assert read_size(file) == image.shape[:2] == TURNED[orientation].shape[:2]
    assert np.abs(image.astype(int) - TURNED[orientation]).mean() < 8
    lying = read_image(file, (48, 64))  # annotations that count the pixels as they lie
    assert np.abs(lying.astype(int) - (RGB if orientation >= 5 else TURNED[orientation])).mean() < 8


@pytest.mark.parametrize("orientation", [6, 3])
def test_16_bit_tiff_is_turned_too(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    gray = Image.fromarray(RGB[..., 0].astype(np.uint16) << 8)
    file = write(tmp_path, encode(gray, "TIFF", exif=exif))
    assert read_size(file) == TURNED[orientation].shape[:2]
    np.testing.assert_array_equal(read_image(file)[..., 0], TURNED[orientation][..., 0])


@pytest.mark.parametrize(("dtype", "kind"), [(np.int16, "signed"), (np.int8, "signed"), (np.float32, "floating-point")])
def test_a_tiff_of_numbers_that_are_not_unsigned_is_refused(tmp_path, dtype, kind):
    """OpenCV takes their bits for unsigned ones: what is below 0 would be white."""
    values = np.arange(48 * 64, dtype=np.int64).reshape(48, 64) % 200 - 100
    bits = {np.int16: np.uint16, np.int8: np.uint8}.get(dtype, dtype)
    more = {} if bits is dtype else {"tiffinfo": {0x0153: 2}}
    file = write(tmp_path, encode(Image.fromarray(values.astype(dtype).view(bits)), "TIFF", **more), "a.tif")
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=f"^{re.escape(file)}: a TIFF of {kind} numbers; write unsigned ones"):
            read(file)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_pages_and_frames_after_the_first_are_known_of(tmp_path, kind):
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    assert not has_pages(write(tmp_path, encode(first, kind), "one"))
    assert has_pages(write(tmp_path, encode(first, kind, save_all=True, append_images=[second]), "two"))
    assert not has_pages(write(tmp_path, b"no picture", "none"))


def test_exif_after_the_pixels_of_a_png_and_none_from_xmp(tmp_path):
    content = sideways("PNG")
    at = content.index(b"eXIf") - 4
    length = 12 + int.from_bytes(content[at : at + 4], "big")
    late = content[:at] + content[at + length : -12] + content[at : at + length] + content[-12:]
    file = write(tmp_path, late)
    assert read_size(file) == read_image(file).shape[:2] == (64, 48)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    file = write(tmp_path, encode(Image.fromarray(RGB), "JPEG", xmp=xmp), "b.jpg")
    assert read_size(file) == read_image(file).shape[:2] == (48, 64)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_is_none(tmp_path, orientation):
    for kind in ("JPEG", "TIFF"):
        file = write(tmp_path, sideways(kind, orientation))
        assert read_size(file) == read_image(file).shape[:2] == (48, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM"])
def test_a_size_needs_the_header_alone(tmp_path, kind, monkeypatch):
    num_bytes = 0

    class Counted(io.FileIO):
        def read(self, size=-1):
            nonlocal num_bytes
            content = super().read(size)
            num_bytes += len(content)
            return content

        def readinto(self, buffer):
            raise AssertionError("all goes through read")

    def count_reads(file, mode, buffering):
        assert buffering == 0
        return Counted(file)

    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    file = write(tmp_path, encode(Image.fromarray(noise), kind))
    monkeypatch.setattr("detkit.data.decode.open", count_reads, raising=False)
    assert read_size(file) == (300, 400)
    assert 0 < num_bytes < 2000 < 60_000 < len((tmp_path / "a.jpg").read_bytes())
