"""Which guess answers for which object: SimOTA's costs by hand, and boxes that keep the object they were given."""

import math

import pytest
import torch

from detkit.matching import MaxIoUAssigner
from detkit.models.flow.matchers import AsCoupled, Guessed, SimOTA
from tests.models.builders import target

#: what focal loss gains by a class of score 1/2: alpha (1 - p)^gamma for the class, and 1 - alpha for background
FOCAL = (0.25 * 0.25 - 0.75 * 0.25) * math.log(2)


class TestSimOTA:
    boxes = torch.tensor([[10.0, 10, 30, 30], [11, 10, 30, 30], [60, 60, 90, 90], [14, 10, 34, 30], [0, 80, 9, 99]])

    def guessed(self, scores=0.5):
        return Guessed(self.boxes, torch.full((5, 3), scores), (100, 100))

    def match(self, objects):
        return SimOTA()([self.guessed()], torch.zeros(1, 5), [objects])[0]

    def test_costs_by_hand(self):
        objects = target((10, 10, 30, 30), labels=[1])
        cost = SimOTA().costs(self.guessed(), objects)
        assert cost[0, 0].item() == pytest.approx(2 * FOCAL, abs=1e-5)
        assert cost[1, 0].item() == pytest.approx(2 * FOCAL + 5 * 0.01 + 2 * (1 - 0.95), abs=1e-4)
        assert cost[2, 0] > 1e4

    def test_a_guess_in_units_of_the_image_by_hand(self):
        """1 px along x of 200 x 100 px is 2 / 200 in sum; IoU and GIoU are 380 / 420."""
        guessed = Guessed(self.boxes[1:2] - torch.tensor([0, 0, -1.0, 0]), torch.full((1, 3), 0.5), (100, 200))
        cost = SimOTA().costs(guessed, target((10, 10, 30, 30), labels=[1]))
        assert cost.item() == pytest.approx(2 * FOCAL + 5 * 0.01 + 2 * (1 - 380 / 420), abs=1e-5)

    def test_a_guess_near_an_object_and_not_in_it_by_hand(self):
        """Its centre is beside the object: IoU 0, a hull of 45 x 20 of which both fill 8 / 9, 25 px off in x1 and x2."""
        guessed = Guessed(torch.tensor([[35.0, 10, 55, 30]]), torch.full((1, 3), 0.5), (100, 100))
        cost = SimOTA().costs(guessed, target((10, 10, 30, 30), labels=[1]))
        assert cost.item() == pytest.approx(2 * FOCAL + 5 * 0.5 + 2 * (1 + 1 / 9) + 100, abs=1e-3)

    def test_a_guess_that_is_sure_of_a_class_still_costs_by_where_it_lies(self):
        """A score of 1, which float32 makes of any logit above 17, costs what one of 1 - 1e-8 would."""
        cost = SimOTA().costs(self.guessed(scores=1.0), target((10, 10, 30, 30), labels=[1]))
        assert cost[0, 0].item() == pytest.approx(2 * 0.75 * math.log(1e-8), rel=1e-5)
        assert cost[1, 0] > cost[0, 0]
        assert cost[2, 0] > 1e3

    def test_an_object_takes_as_many_as_it_has_good_guesses(self):
        matched = self.match(target((10, 10, 30, 30), labels=[1]))
        # IoUs 1, .95, .667: 2.6 in sum, so two
        assert matched.classes.matched.tolist() == [0, 0, -1, -1, -1]
        assert matched.objects.tolist() == [0, 0, -1, -1, -1]

    def test_two_objects_never_share_a_guess_and_each_has_one(self):
        objects = target((10, 10, 30, 30), (10, 10, 30, 31), (70, 5, 80, 9), labels=[1, 1, 0])
        matched = self.match(objects)
        assert set(matched.objects.tolist()) == {-1, 0, 1, 2}

    def test_a_guess_that_two_objects_take_is_of_the_one_it_costs_less(self):
        """Both want the first two, which fit the first object better; the other one gets the best that is left."""
        matched = self.match(target((10, 10, 30, 30), (10, 10, 30, 34), labels=[1, 1]))
        assert matched.objects.tolist() == [0, 0, -1, 1, -1]

    def test_no_objects_are_background_alone(self):
        matched = self.match(target())
        assert matched.classes.negative.all()
        assert (matched.objects < 0).all()

    def test_a_batch_is_matched_as_each_of_its_images(self):
        crowded = target((10, 10, 30, 30), (10, 10, 30, 31), (70, 5, 80, 9), labels=[1, 1, 0])
        far = target((0, 0, 3, 3), (90, 0, 93, 3), (50, 0, 53, 3), (60, 60, 90, 90), labels=[1, 2, 0, 0])
        targets = [far, target(), crowded, far]
        together = SimOTA()([self.guessed()] * 4, torch.zeros(4, 5), targets)
        alone = [self.match(objects) for objects in targets]
        assert [m.objects.tolist() for m in together] == [m.objects.tolist() for m in alone]
        assert [m.classes.matched.tolist() for m in together] == [m.classes.matched.tolist() for m in alone]
        assert set(alone[0].objects.tolist()) >= {0, 1, 2, 3}, "objects that no guess is near have one each"


def test_as_coupled_gives_every_box_its_own_object():
    matcher = AsCoupled(assigner=MaxIoUAssigner(positive=0.5, negative=0.5, match_best=True))
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [9, 9, 40, 40]])
    objects = target((0, 0, 10, 11), (45, 45, 70, 70))
    [matched] = matcher([Guessed(boxes, torch.zeros(3, 3), (100, 100))], torch.tensor([[1, -1, 0]]), [objects])
    assert matched.classes.matched.tolist() == [0, 1, -1], "the second object's best box is it, however far"
    assert matched.objects.tolist() == [1, -1, 0]
