"""One XML file of Pascal VOC's, as it stands there: what is odd in it is for the reader of the data set to judge."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from detkit.data.datasets.fields import parse_flag

#: The corners of a <bndbox>, in the order of the numbers inside detkit.
SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """One ``<object>``.

    ``name`` is its class; ``texts`` are xmin ymin xmax ymax as written, None where there is none; ``flag`` is what
    stands in <difficult>, "0" without one; ``repeated`` names what it has more than once.
    """

    name: str
    texts: tuple[str | None, ...]
    flag: str
    repeated: str

    @property
    def corners(self) -> tuple[float, ...]:
        """The numbers xmin ymin xmax ymax px, NaN where there is none."""
        return tuple(map(parse_finite, self.texts))

    @property
    def difficult(self) -> bool | None:
        """Whether it is difficult; None where ``flag`` is no flag."""
        return parse_flag(self.flag)


class VocFile(NamedTuple):
    """One XML file: height and width as written, None where there is none, and its objects."""

    texts: tuple[str | None, str | None]
    objects: list[VocObject]

    @property
    def size(self) -> tuple[int, int] | None:
        """(h, w) px; None where the file gives no size of at least a pixel."""
        h, w = map(parse_finite, self.texts)
        return (int(h), int(w)) if h >= 1 and w >= 1 else None


def read_voc_xml(path: Path) -> VocFile:
    """The file at ``path``, in whatever encoding it declares.

    Only an object's own box is taken: VOC's person layout nests parts (head, hands) with boxes of theirs.

    Raises:
        ValueError: it cannot be read, is not VOC's, or has an object without a class; the message names the file.
    """
    tree = _parse(path)
    if tree.tag != "annotation":
        raise ValueError(f"{path}: not VOC's XML: the outermost element is <{tree.tag}>, not <annotation>")
    texts = tree.findtext("size/height"), tree.findtext("size/width")
    return VocFile(texts, [_object(path, i, node) for i, node in enumerate(tree.findall("object"), start=1)])


def parse_finite(text: str | None) -> float:
    """The finite number that ``text`` is, or NaN."""
    try:
        value = float(text or "nan")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _parse(path: Path) -> ElementTree.Element:
    try:
        data = path.read_bytes()
        try:
            return ElementTree.fromstring(data)
        except ElementTree.ParseError:
            raise
        except ValueError:  # expat leaves encodings of several bytes (GBK, Shift JIS) to us
            declared = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)""", data)
            return ElementTree.fromstring(data.decode(declared[1].decode("ascii") if declared else "utf-8"))
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: not XML: {getattr(error, 'strerror', None) or error}") from error


def _object(path: Path, number: int, node: ElementTree.Element) -> VocObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{path}: object {number} has no <name>")
    texts = tuple(node.findtext(f"bndbox/{side}") for side in SIDES)
    return VocObject(name, texts, node.findtext("difficult", default="0"), _repeated(node))


def _repeated(node: ElementTree.Element) -> str:
    """What an ``<object>`` has more than once of that which it may have once, in words; its parts have boxes too."""
    counts = {tag: len(node.findall(tag)) for tag in ("name", "difficult", "bndbox")}
    counts |= {side: len(node.findall(f"bndbox/{side}")) // max(1, counts["bndbox"]) for side in SIDES}
    return "".join(f", {count} <{tag}>" for tag, count in counts.items() if count > 1)
