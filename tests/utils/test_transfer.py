"""Several tensors moved in one piece: each as it was, however often."""

import torch

from detkit.utils.transfer import moved_together, sent_parts

PARTS = [
    torch.arange(8.0).view(2, 4),
    torch.tensor([3, 1]),
    torch.zeros(0, 4),
    torch.arange(18.0).view(2, 3, 3),
    torch.tensor([True, False]),
    torch.arange(6.0).view(3, 2).T,
    torch.zeros(0, dtype=torch.int64),
]


def same(ours, theirs):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_each_comes_as_it_was_in_one_move_for_each_type():
    moves = []
    moved = moved_together(PARTS, lambda whole: (moves.append(whole), whole.clone())[1])
    assert same(moved, PARTS)
    assert [whole.dtype for whole in moves] == [torch.float32, torch.int64, torch.bool]
    assert same(sent_parts(PARTS, torch.device("cpu")), PARTS)
    assert moved_together([], torch.clone) == []


def test_what_lies_together_is_moved_from_where_it_lies():
    """So what is in page-locked memory is not copied to other memory before it is sent."""
    made, given = [], []
    moved = moved_together(PARTS, lambda whole: (made.append(whole.clone()), made[-1])[1])
    again = moved_together(moved, lambda whole: (given.append(whole), whole.clone())[1])
    assert same(again, PARTS)
    assert [whole.data_ptr() for whole in given] == [whole.data_ptr() for whole in made]
    assert same(given, made)


def test_what_only_shares_its_memory_is_not_taken_for_a_row():
    rows = torch.arange(12.0).view(4, 3)
    for parts in ([rows[2], rows[1]], [rows[0], rows[2]], [rows[:, 0], rows[:, 1]], [rows[0], rows[0]]):
        assert same(moved_together(parts, torch.clone), parts)
