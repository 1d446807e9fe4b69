"""What the scripts have in common: their options, and the way from an archive's home to its unpacked files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from disk import FetchError, read_json, require_space
from fetch import download
from progress import say
from rich.console import Console
from rich.filesize import decimal
from unpack import is_unpacked, unpack

#: Exit codes: a problem that was told in words, and the shell's code for Ctrl-C.
FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class Archive:
    """A published archive: ``path`` below its home, ``name`` on this disk, ``size`` in bytes."""

    path: str
    size: int
    sha256: str
    name: str = ""

    @property
    def file_name(self) -> str:
        return self.name or self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Options:
    """Where the data goes and where it comes from: what every script is told on its command line."""

    root: Path
    homes: tuple[str, ...]
    is_mirror: bool
    check: bool
    delete_archives: bool
    console: Console

    def archive_file(self, archive: Archive) -> Path:
        return self.root / "archives" / archive.file_name

    def record_file(self, archive: Archive) -> Path:
        # Not beside the archives: those may be deleted, and what is unpacked stays known.
        return self.root / ".unpacked" / f"{archive.file_name}.json"


def make_parser(description: str, root: str) -> argparse.ArgumentParser:
    """The options that all scripts share; ``root`` is the default folder, beside the scripts."""
    parser = argparse.ArgumentParser(description=description)
    default = Path(__file__).resolve().parent / root
    parser.add_argument("--root", type=Path, default=default, help="folder of the data set (default: %(default)s)")
    parser.add_argument(
        "--mirror", metavar="URL", help="take the archives from here: URL/<path as at home>, or else URL/<file name>"
    )
    parser.add_argument(
        "--no-checksum",
        action="store_true",
        help="accept archives with another checksum or size than the published one (a mirror that packed them anew)",
    )
    parser.add_argument(
        "--delete-archives", action="store_true", help="delete each archive once it is unpacked (half of the space)"
    )
    return parser


def read_options(args: argparse.Namespace, homes: Sequence[str]) -> Options:
    homes = [args.mirror] if args.mirror else homes
    return Options(
        root=args.root,
        homes=tuple(home.rstrip("/") for home in homes),
        is_mirror=bool(args.mirror),
        check=not args.no_checksum,
        delete_archives=args.delete_archives,
        console=Console(),
    )


def run(script: Callable[[], object]) -> int:
    """Run a script's work; the exit code. A problem is told in words, without a traceback."""
    try:
        script()
    except (FetchError, OSError) as error:
        say(Console(stderr=True), f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        say(Console(stderr=True), "interrupted; run the same command again to go on")
        return INTERRUPTED
    return 0


def fetch_archives(archives: Sequence[Archive], options: Options, target: Path) -> None:
    """Download, check and unpack ``archives`` into ``target``; those that are there already are passed over.

    Raises:
        FetchError: one of them cannot be had from any home, is wrong, or does not fit on the disk.
    """
    missing = [archive for archive in archives if not _is_there(archive, options, target)]
    for archive in archives:
        if archive not in missing:
            say(options.console, f"{archive.file_name}: already unpacked in {target}")
    # Unpacked, pictures take about what they take packed; told now, not after hours of downloading.
    require_space(options.root, sum(_missing_bytes(a, options) for a in missing), "what is still to fetch")
    for archive in missing:
        file = _obtain(archive, options)
        sha256 = read_json(file.with_name(file.name + ".json"))["sha256"]
        count = unpack(file, target, options.record_file(archive), sha256, options.console)
        say(options.console, f"{archive.file_name}: {count} files unpacked in {target} (sha256 {sha256[:16]}...)")
        if options.delete_archives:
            file.unlink()
    kept = [file for a in archives if (file := options.archive_file(a)).exists()]
    if kept:
        size = decimal(sum(file.stat().st_size for file in kept))
        say(options.console, f"The archives ({size}) stay in {kept[0].parent}; they may be deleted.")


def _is_there(archive: Archive, options: Options, target: Path) -> bool:
    return is_unpacked(target, options.record_file(archive), archive.sha256 if options.check else None)


def _missing_bytes(archive: Archive, options: Options) -> int:
    """Bytes that the archive will take, packed and unpacked, less those that are on the disk."""
    file = options.archive_file(archive)
    there = next((f.stat().st_size for f in (file, file.with_name(file.name + ".part")) if f.exists()), 0)
    return max(0, archive.size - there) + archive.size


def _obtain(archive: Archive, options: Options) -> Path:
    """The archive's file, from the first of its homes that gives it."""
    file = options.archive_file(archive)
    checks = {"sha256": archive.sha256, "size": archive.size} if options.check else {}
    problems = []
    for url in _urls(archive, options):
        say(options.console, f"{archive.file_name}: {'found in' if file.exists() else 'from ' + url + ' to'} {file}")
        try:
            return download(url, file, **checks, console=options.console)
        except FetchError as error:
            problems.append(str(error))
            if file.exists():  # there, but wrong: no other home changes that
                break
    advice = "Another source can be named with --mirror URL"
    if options.check:
        advice += "; --no-checksum accepts an archive that was packed anew"
    raise FetchError("\n".join([*problems, advice + "."]))


def _urls(archive: Archive, options: Options) -> list[str]:
    urls = [f"{home}/{archive.path}" for home in options.homes]
    if options.is_mirror:  # people keep copies flat
        urls += [f"{options.homes[0]}/{archive.file_name}"]
    return list(dict.fromkeys(urls))
