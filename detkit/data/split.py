"""Which images go where: a split by image, or by group where images of one group are too much alike to be parted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import torch

from detkit.utils.seed import generator

#: The groups that pictures of one folder make.
FOLDER = "folder"


def groups_of(names: Sequence[str], rule: str | None) -> list[str]:
    """The group of each picture.

    Args:
        names: paths relative to the folder of pictures, with slashes.
        rule: None: each picture is its own; "folder": its folder is; else a regular expression, whose first group in
            parentheses, or all that matches without one, names it: ``(.*)_frame`` for video7_frame0012.jpg.

    Raises:
        ValueError: it is no regular expression, or does not match each name.
    """
    if rule is None:
        return list(names)
    if rule == FOLDER:
        return [str(PurePosixPath(name).parent) for name in names]
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(f"group: must be null, folder or a regular expression, not {rule!r}: {error}") from error
    found = [pattern.search(name) for name in names]
    without = [
        name for name, match in zip(names, found, strict=True) if match is None or match[pattern.groups > 0] is None
    ]
    if without:
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        raise ValueError(f"group: {rule!r} does not match {without[0]}{more}")
    return [match[pattern.groups > 0] for match in found if match is not None]


def split_groups(groups: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """The images (their places, in order) of each part; those of one group are all in the same one.

    Groups are taken in an order drawn from ``seed``, the largest first, each by the part that lacks most images:
    without groups, numbers of images are those of the shares to within one.

    Args:
        groups: of the I images.
        shares: part -> its share of the images; they add up to 1.
        seed: another one splits otherwise; the order of the images does not matter.

    Raises:
        ValueError: the shares are none, or a part would have no image.
    """
    check_shares(shares)
    counts = Counter(groups)
    names = sorted(counts)
    drawn = torch.randperm(len(names), generator=generator(seed, "split")).tolist()
    lacking = {part: share * len(groups) for part, share in shares.items()}
    part_of: dict[str, str] = {}
    for done, name in enumerate(sorted((names[i] for i in drawn), key=lambda name: -counts[name])):
        empty = lacking.keys() - part_of.values()
        is_last_chance = len(names) - done <= len(empty)
        part = max(shares, key=lambda part: (is_last_chance and part in empty, lacking[part]))
        part_of[name] = part
        lacking[part] -= counts[name]
    parts = {part: [i for i, group in enumerate(groups) if part_of[group] == part] for part in shares}
    if empty := [part for part, images in parts.items() if not images]:
        kind = "images" if len(names) == len(groups) else "groups"
        raise ValueError(f"into: {empty[0]} would have no image: there are {len(names)} {kind} for {len(shares)} parts")
    return parts


def check_shares(shares: Mapping[str, float]) -> None:
    """Refuse shares that are none.

    Raises:
        ValueError: as it says; the message names the part.
    """
    for part, share in shares.items():
        if not re.fullmatch(r"[\w-]+", part):
            raise ValueError(f"into: {part!r} must be a name of letters, digits, _ and -: files are named by it")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"into.{part}: must be a share above 0, of 1 in all, not {share!r}")
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"into: the shares must add up to 1, not {sum(shares.values()):g}")
