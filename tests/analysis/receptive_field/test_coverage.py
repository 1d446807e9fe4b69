"""Which sizes a level covers, by hand."""

import math

import numpy as np

from detkit.analysis.receptive_field import Cover, Gap, SizeBin, gaps, size_bins

#: strides 4 and 16, fields 20 and 100, effective fields 10 and 70
COVERS = [Cover.of(4, 20, 10.0), Cover.of(16, 100, 70.0)]


def test_from_two_cells_to_the_field():
    assert COVERS[0][:2] == (8, 20)
    assert COVERS[0].covers(np.array([7.9, 8, 20, 20.1])).tolist() == [False, True, True, False]
    assert Cover.of(8, None).high == math.inf, "without a field of its own it sees everything"


def test_bins_name_the_levels_that_cover_at_least_half():
    sides = np.array([5.0, 9, 10, 11, 17, 21, 22, 40, 80, 90, 100])
    assert size_bins(sides, COVERS) == [
        SizeBin(4, 8, 1, 1 / 11, (), ()),
        SizeBin(8, 16, 3, 3 / 11, (0,), (0,)),
        SizeBin(16, 32, 3, 3 / 11, (), ()),
        SizeBin(32, 64, 1, 1 / 11, (1,), (1,)),
        SizeBin(64, 128, 3, 3 / 11, (1,), ()),
    ]
    assert size_bins(np.zeros(0), COVERS) == []


def test_gaps_are_exact_and_count_their_boxes():
    sides = np.array([7.9, 8, 20, 20.5, 31.9, 32, 100, 100.5, 300])
    assert gaps(sides, COVERS) == [Gap(0, 8, 1), Gap(20, 32, 2), Gap(100, math.inf, 2)]
    assert gaps(sides, [*COVERS, Cover.of(2, None)]) == [Gap(0, 4, 0)]
    assert gaps(sides, [Cover.of(32, 10)]) == [Gap(0, math.inf, 9)], "a field smaller than two cells covers nothing"
