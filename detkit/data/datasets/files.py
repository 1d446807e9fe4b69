"""Files and their names: folders read to the bottom, text in its own encoding, names in another spelling found."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from detkit.data.datasets.findings import LEFT_OUT, Findings, Policy
from detkit.data.decode import ImageError, read_size

#: Endings of the formats that decode.py reads.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".jp2")

#: Endings of what may lie beside pictures and is none: worth no word.
TEXT_ENDINGS = (".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".md", ".cache", ".names", ".data", ".db", ".ini")

#: UTF-32's marks begin with those of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file: in the encoding that its byte order mark tells, else UTF-8.

    Raises:
        ValueError: it cannot be read, or is in another encoding; the message names the file.
    """
    try:
        data = path.read_bytes()
        return data.decode(next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def normal_name(name: str) -> str:
    """``name`` in one Unicode form (NFC) and with slashes: macOS decomposes accents, Windows writes back-slashes."""
    return unicodedata.normalize("NFC", name).replace("\\", "/")


def list_files(findings: Findings, folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Name without ending -> path, for the files in ``folder`` and below that have one of ``endings``.

    Names are relative to ``folder``, in :func:`normal_name`'s form, and in the order of the paths. Hidden folders, and
    files that are neither pictures nor text, are left out and counted.

    Args:
        findings: where that is counted, and two files with one name are refused.
        folder: where to look.
        endings: in small letters, with the dot.

    Raises:
        ValueError: there is no such folder, or one below it cannot be read.
    """
    found: dict[str, Path] = {}
    files, hidden = _walk(folder)
    for name in files:
        stem, ending = os.path.splitext(name)
        if ending.lower() not in endings:
            continue
        path, stem = folder / name, normal_name(stem)
        if stem in found:
            first = found[stem].relative_to(folder).as_posix()
            findings.reject(f"in {folder}: {first} and {name} would have the same annotations")
        found[stem] = path
    known = (*IMAGE_ENDINGS, *TEXT_ENDINGS)
    others = [n for n in files if not n.endswith(known) and os.path.splitext(n)[1].lower() not in known]
    findings.note("files of unknown kind", LEFT_OUT, range(len(others)), lambda i: str(folder / others[i]))
    findings.note("hidden folders", LEFT_OUT, range(len(hidden)), hidden.__getitem__)
    return found


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """Files in ``folder`` and below, relative to it and sorted; the hidden folders, which are not entered."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files: list[str] = []
    hidden: list[str] = []
    for parent, folders, names in walk(folder, _refuse_folder):
        hidden += [os.path.join(parent, name) for name in folders if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.relpath(os.path.join(parent, name), folder) for name in names]
    return sorted(files), sorted(hidden)


def walk(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk``, but links are followed too, and a folder that several lead to is entered once.

    Args:
        folder: where to begin.
        onerror: takes the error of a folder that cannot be read.
    """
    entered: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        place = os.path.realpath(parent)
        if place in entered:  # a link that leads back up, say
            folders.clear()
            continue
        entered.add(place)
        folders.sort()  # by which of its names a folder is entered is the same on any disk
        yield parent, folders, names


def _refuse_folder(error: OSError) -> None:
    raise ValueError(f"{error.filename}: {error.strerror or error}") from error


def read_sizes(findings: Findings, files: Sequence[Path], policy: Policy) -> dict[Path, tuple[int, int]]:
    """(h, w) px of every picture in ``files``, from its header, turned as its EXIF says.

    Args:
        findings: where those that cannot be read are refused or counted.
        files: paths.
        policy: of ``on_missing``: whether they are refused or left out.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    unreadable: list[str] = []
    for file in files:
        try:
            sizes[file] = read_size(str(file))
        except ImageError as error:
            unreadable.append(str(error))
    findings.refuse(
        "unreadable images", range(len(unreadable)), unreadable.__getitem__, policy=policy, option="on_missing"
    )
    return sizes


class Listings:
    """What lies in folders, each listed once: a stat for each file is slow over a network.

    ``num_renamed`` counts the files that were found under another form of the name than was asked for.
    """

    def __init__(self) -> None:
        self.num_renamed = 0
        self._names: dict[str, set[str]] = {}
        self._by_form: dict[str, dict[str, str]] = {}

    def __contains__(self, file: str) -> bool:
        folder, name = os.path.split(file)
        return name in self._list(folder)

    def find(self, file: str) -> str:
        """The file that ``file`` means, be it in another Unicode form or with back-slashes; itself if there is none."""
        if file in self:
            return file
        other = self._in_other_form(file) or self._in_other_form(file.replace("\\", "/"))
        self.num_renamed += other is not None
        return other or file

    def _in_other_form(self, file: str) -> str | None:
        folder, name = os.path.split(file)
        if file in self or not name:
            return file
        if not self._list(folder):
            above = self._in_other_form(folder) if folder else None
            if above is None or above == folder:
                return None
            folder = above
        if folder not in self._by_form:
            self._by_form[folder] = {unicodedata.normalize("NFC", n): n for n in self._list(folder)}
        same = self._by_form[folder].get(unicodedata.normalize("NFC", name))
        return None if same is None else os.path.join(folder, same)

    def _list(self, folder: str) -> set[str]:
        if folder not in self._names:
            place = folder or "."
            self._names[folder] = set(os.listdir(place)) if os.path.isdir(place) else set()
        return self._names[folder]


def with_nearest(file: str) -> str:
    """``file``, which is not there, and for a message the one whose name differs in case, ending or signs only."""
    folder, name = os.path.split(file.replace("\\", "/"))
    while folder and folder != "/" and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    names = sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    near = next((n for n in names if n == name or _letters(n) == _letters(name)), None)
    return file if near is None else f"{file} (there is {os.path.join(folder, near)})"


def _letters(name: str) -> str:
    stem = unicodedata.normalize("NFKC", os.path.splitext(name)[0]).casefold()
    return re.sub(r"[\W_]+", "", stem) or stem
