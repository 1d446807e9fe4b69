"""A split: whole groups, the shares as near as they can be, and the same for the same seed."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from detkit.data.split import groups_of, split_groups

THIRDS = {"train": 0.7, "val": 0.2, "test": 0.1}


@given(num=st.integers(20, 200), seed=st.integers(0, 2**40))
def test_single_images_are_split_to_within_one(num, seed):
    parts = split_groups([f"{i}.jpg" for i in range(num)], THIRDS, seed)
    assert sorted(itertools.chain(*parts.values())) == list(range(num))
    for part, share in THIRDS.items():
        assert abs(len(parts[part]) - share * num) <= 1
        assert parts[part] == sorted(parts[part])


@given(st.lists(st.integers(0, 12), min_size=60, max_size=120), st.integers(0, 99))
def test_groups_stay_together_and_parts_are_near_their_shares(groups, seed):
    names = [f"video{g}" for g in groups]
    assume(len(set(names)) > 1)
    parts = split_groups(names, {"train": 0.75, "val": 0.25}, seed)
    of = {part: {names[i] for i in places} for part, places in parts.items()}
    assert not of["train"] & of["val"]
    assert sorted(itertools.chain(*parts.values())) == list(range(len(names)))
    largest = max(map(names.count, names))
    assert abs(len(parts["val"]) - len(names) / 4) <= largest


def test_the_seed_decides_and_the_order_does_not():
    names = [f"{i}.jpg" for i in range(50)]
    first = split_groups(names, THIRDS, 1)
    assert first == split_groups(names, THIRDS, 1)
    assert first != split_groups(names, THIRDS, 2)
    back = split_groups(names[::-1], THIRDS, 1)
    assert {names[i] for i in first["val"]} == {names[::-1][i] for i in back["val"]}


def test_no_part_goes_without_where_there_are_groups_enough():
    assert sorted(map(len, split_groups(["a"] * 30 + ["b"] * 30, {"train": 0.75, "val": 0.25}, 0).values())) == [30, 30]
    parts = split_groups(["a"] * 90 + ["b", "c"], THIRDS, 0)
    assert [len(places) for places in parts.values()] == [90, 1, 1]


def test_groups_by_folder_and_by_name():
    names = ["a/1.jpg", "a/2.jpg", "b/c/1.jpg", "3.jpg"]
    assert groups_of(names, None) == names
    assert groups_of(names, "folder") == ["a", "a", "b/c", "."]
    clips = ["clip7_frame001.jpg", "clip7_frame002.jpg", "clip12_frame001.jpg"]
    assert groups_of(clips, "(.*)_frame") == ["clip7", "clip7", "clip12"]
    assert groups_of(clips, r"clip\d+") == ["clip7", "clip7", "clip12"]
    assert groups_of(clips, r"clip(\d+)_(frame)\d+") == ["7", "7", "12"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("([", r"group: must be null, folder or a regular expression, not '\(\[': "),
        ("(.*)_frame", r"group: '\(\.\*\)_frame' does not match a\.jpg \(and 1 more\)$"),
        ("(x)?[ab]", r"does not match a\.jpg \(and 1 more\)$"),
    ],
)
def test_rules_that_group_nothing(rule, message):
    with pytest.raises(ValueError, match=message):
        groups_of(["a.jpg", "b.jpg"] + ["v_frame1.jpg"] * (rule == "(.*)_frame"), rule)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"train": 0.8, "val": 0.3}, "the shares must add up to 1, not 1.1"),
        ({}, "must add up to 1, not 0"),
        ({"train": 1.2}, r"into\.train: must be a share above 0, of 1 in all, not 1\.2"),
        ({"train": 1, "val": 0}, r"into\.val: must be a share above 0"),
        ({"train": True}, "not True"),
        ({"../train": 1.0}, r"into: '\.\./train' must be a name of letters"),
        ({"train": 0.5, "val": 0.5}, "into: val would have no image: there are 1 groups for 2 parts"),
    ],
)
def test_shares_that_are_none(shares, message):
    with pytest.raises(ValueError, match=message):
        split_groups(["a"] * 9, shares, 0)
