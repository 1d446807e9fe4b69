"""The head of flowing boxes: what it draws, what it learns from, and how it samples."""

import dataclasses

import pytest
import torch

from detkit.config import ConfigError
from detkit.models.flow.coupling import OptimalTransport, Padded
from detkit.models.flow.decoder import Guess
from detkit.models.flow.path import CosinePath, LinearPath
from detkit.models.flow.state import whole
from detkit.models.heads.flow import Start
from detkit.structures import Categories, Images
from detkit.structures.boxes import pairwise_iou
from tests.models.builders import SMALL, build_model, images, target

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))
SIZES = ((64, 96), (50, 70), (96, 32))
TINY = ["model/backbone=resnet18", *SMALL, "model.head.num_boxes=12", "model.head.decoder.width=32"]


def build(*overrides, model="flow"):
    torch.manual_seed(0)
    return build_model(model, CATEGORIES, [*TINY, *overrides]).eval()


def keyed(batch, *keys):
    return Images(batch.pixels, tuple(dataclasses.replace(m, key=k) for m, k in zip(batch.meta, keys, strict=True)))


def features_of(batch, seed=0, channels=256, dtype=torch.float32):
    """What a neck would give, with zeros beside each image, so that an image's do not depend on its batch."""
    maps = []
    for stride in (4, 8, 16, 32, 64):
        h, w = (-(-x // stride) for x in batch.padded_size)
        x = torch.zeros(len(batch), channels, h, w, dtype=dtype)
        for i, meta in enumerate(batch.meta):
            g = torch.Generator().manual_seed(seed + 1000 * meta.image_id + stride)
            rows, columns = (-(-x // stride) for x in meta.size)
            x[i, :, :rows, :columns] = torch.randn(channels, rows, columns, generator=g, dtype=dtype)
        maps.append(x)
    return maps


TARGETS = [
    target((5, 5, 30, 40), (50, 20, 90, 60), labels=[0, 2]),
    target((1, 1, 69, 49), labels=[1]),
    target((4, 60, 30, 90), (2, 2, 12, 30), (8, 30, 24, 50), labels=[1, 0, 2]),
]


def oracle(head, targets, sizes, num_classes=3):
    """What a perfect decoder says: the box of the nearest object, and its class for sure."""

    def denoise(boxes, t):
        logits, found = torch.full((*boxes.shape[:2], num_classes + 1), -20.0), boxes.clone()
        for i, objects in enumerate(targets):
            both = torch.cat([boxes[i], objects.boxes])[None]
            states = head.states.encode(both, whole(both, [sizes[i]]))[0]
            nearest = torch.cdist(states[: boxes.shape[1]], states[boxes.shape[1] :]).argmin(1)
            found[i] = objects.boxes[nearest]
            logits[i, torch.arange(boxes.shape[1]), objects.labels[nearest]] = 20.0
        return Guess(logits, found)

    return denoise


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 16, 50])
@pytest.mark.parametrize("path", [LinearPath(), CosinePath(), CosinePath(eta=1.0)])
def test_an_oracle_finds_every_object_in_any_number_of_steps(path, steps):
    head = build("model.head.ensemble=false", "model.head.test_boxes=60").head
    head.path = path
    batch = images(*SIZES)
    noise = head.noise(len(batch))
    taken = head.sample(oracle(head, TARGETS, SIZES), whole(noise, batch.sizes), noise, steps)
    assert len(taken) == steps
    found = head._select(taken[-1].guess.logits, taken[-1].guess.boxes, batch)
    for detections, objects in zip(found, TARGETS, strict=True):
        assert len(detections) == len(objects)
        best, index = pairwise_iou(objects.boxes, detections.boxes).max(1)
        assert best.min() > 0.99
        assert torch.equal(detections.labels[index], objects.labels)


def test_boxes_arrive_where_the_oracle_says():
    """The state after the last step is the guess: nothing of the noise is left, on either path."""
    head, batch = build().head, images((64, 96))
    unit = whole(torch.zeros(()), batch.sizes)
    goal = torch.tensor([[[10.0, 20, 30, 50]]]).expand(1, 12, 4)
    for path in (LinearPath(), CosinePath()):
        head.path = path
        taken = head.sample(lambda b, t: Guess(torch.zeros(1, 12, 4), goal), unit, head.noise(1), 5)
        last = taken[-1]
        data = head.states.encode(goal, unit)
        end = path.step(last.states, data, last.t, 1.0)
        torch.testing.assert_close(end, data, rtol=0, atol=1e-5)
        assert [step.t for step in taken] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_a_batch_is_each_image_alone():
    """In double precision, so that only what is mixed up between images can differ; padding included."""
    head = build("model.head.steps=3", "model.head.renewal=0.3").head.double()
    head.selector.score_threshold = 0.0
    together = images(*SIZES, (96, 96), (33, 64), (64, 64))
    maps = features_of(together, dtype=torch.float64)
    whole = head.predict(maps, together)
    for i, (meta, found) in enumerate(zip(together.meta, whole, strict=True)):
        alone = dataclasses.replace(images(meta.size), meta=(meta,))
        own = head.predict(features_of(alone, dtype=torch.float64), alone)[0]
        assert len(own) == len(found) > 0, i
        torch.testing.assert_close(found.boxes, own.boxes, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.scores, own.scores, rtol=0, atol=1e-6)


def test_noise_at_test_is_the_same_wherever_an_image_stands():
    head = build("model.head.renewal=0.9").head
    batch = keyed(images((64, 96), (64, 96)), 1, 2)
    noise = head.noise(len(batch))
    assert torch.equal(noise[0], noise[1]), "not by the key, which is the place in a list"
    maps = [f[:1].expand(2, -1, -1, -1) for f in features_of(batch)]
    one, two = head.predict(maps, batch)
    assert torch.equal(one.boxes, two.boxes), "nor by what is drawn while it samples"


def test_draws_in_training_are_by_the_key_alone():
    head = build().head
    batch, flipped = keyed(images(*SIZES), 7, 8, 9), keyed(images(*SIZES[::-1]), 9, 8, 7)
    one, two = head.start(TARGETS, batch), head.start(TARGETS[::-1], flipped)
    for name in Start._fields:
        assert torch.equal(getattr(one, name), getattr(two, name).flip(0)), name
    alone = head.start(TARGETS[1:2], Images(batch.pixels[1:2], batch.meta[1:2]))
    assert torch.equal(alone.noise[0], one.noise[1])
    assert torch.equal(alone.boxes[0], one.boxes[1])
    other = head.start(TARGETS, keyed(images(*SIZES), 7, 8, 10))
    assert torch.equal(other.noise[:2], one.noise[:2])
    assert not torch.equal(other.noise[2], one.noise[2])
    assert other.t[2] != one.t[2]


def test_renewal_draws_as_many_numbers_whatever_is_kept():
    """Image 0 keeps all its boxes, image 1 none: the third step's noise of both is still that of their own draws."""
    head, batch = build().head, images((64, 64), (64, 64))
    sure, unsure = torch.tensor([9.0, 0, 0, 0]), torch.tensor([0.0, 0, 0, 9])

    def denoise(kept):
        logits = torch.stack([sure if k else unsure for k in kept])[:, None].expand(2, 12, 4)
        return lambda boxes, t: Guess(logits, boxes)

    noise, unit = head.noise(2), whole(torch.zeros(()), batch.sizes)
    mixed = head.sample(denoise([True, False]), unit, noise, 4, 0.5)
    renewed = head.sample(denoise([False, False]), unit, noise, 4, 0.5)
    for a, b in zip(mixed, renewed, strict=True):
        assert torch.equal(a.states[1], b.states[1])
    assert not torch.equal(mixed[1].states[0], renewed[1].states[0])
    assert torch.equal(mixed[0].states[0], mixed[0].states[1])


def test_ensemble_has_the_boxes_of_all_steps_and_the_last_among_them():
    head = build("model.head.steps=3").head
    head.selector.score_threshold, head.selector.nms_iou, head.selector.max_detections = 0.0, None, 10_000
    batch = images((64, 96))
    maps = features_of(batch)
    everything = head.predict(maps, batch)[0]
    head.ensemble = False
    last = head.predict(maps, batch)[0]
    assert len(everything) > len(last) > 12
    rows = {tuple(r) for r in everything.boxes.tolist()}
    assert all(tuple(r) in rows for r in last.boxes.tolist())


def test_reflow_pairs_noise_with_the_object_that_it_flows_to():
    head = build("model.head.reflow_steps=3").head
    batch = keyed(images(*SIZES), 7, 8, 9)
    start = head.start(TARGETS, batch, oracle(head, TARGETS, SIZES))
    plain = head.start(TARGETS, batch)
    assert torch.equal(start.noise, plain.noise)
    for i, objects in enumerate(TARGETS):
        unit = whole(start.noise, [SIZES[i]])
        boxes = head.states.decode(start.noise[i : i + 1], unit)
        ends = head.states.encode(oracle(head, TARGETS[i : i + 1], SIZES[i : i + 1])(boxes, None).boxes, unit)[0]
        torch.testing.assert_close(start.data[i], ends, rtol=0, atol=1e-5)
        assert torch.equal(objects.boxes[start.coupled[i]], head.states.decode(ends[None], unit)[0].round())
    elsewhere = head.start(
        TARGETS[1:2], Images(batch.pixels[1:2], batch.meta[1:2]),
        lambda boxes, t: Guess(torch.zeros(1, 12, 4), torch.tensor([0.0, 0, 9, 9]).expand(1, 12, 4)),
    )  # fmt: skip
    assert (elsewhere.coupled == -1).all(), "an end on no object is no object"


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_reflow_of_a_batch_is_that_of_each_image_alone(eta):
    """What chance brings on the way is of an image's own key too, and two images of one noise's place differ by it."""
    head = build("model.head.reflow_steps=3", "flow_path@model.head.path=CosinePath", f"model.head.path.eta={eta}").head
    head = head.double()
    batch = keyed(images(*SIZES), 7, 8, 9)
    together = reflowed(head, TARGETS, batch)
    assert (together.coupled == -1).any()
    for i, objects in enumerate(TARGETS):
        alone = reflowed(head, [objects], Images(batch.pixels[i : i + 1], batch.meta[i : i + 1]))
        for name in Start._fields:
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[i], rtol=0, atol=1e-5)


def reflowed(head, targets, batch):
    """Its start for ``batch`` in double precision, by the decoder on its own maps."""
    maps = features_of(batch, dtype=torch.float64)
    return head.start(targets, batch, lambda boxes, t: head.decoder(maps, boxes.double(), t.double(), batch)[-1])


def test_chance_on_the_way_of_reflow_is_by_the_key():
    """The same image twice, under two keys, and a flow that stays where it is: ends differ by what chance has drawn."""
    head = build("model.head.reflow_steps=3", "flow_path@model.head.path=CosinePath", "model.head.path.eta=1.0").head
    noise, seen = torch.zeros(2, 12, 4), []

    def stays(boxes, t):
        seen.append(boxes)
        return Guess(torch.zeros(2, 12, 4), boxes)

    def last_of(*keys):
        seen.clear()
        head._ends(noise, stays, keyed(images((64, 96), (64, 96)), *keys), [target(), target()])
        return seen[-1]

    one, two = last_of(7, 8)
    assert not torch.equal(one, two)
    head.noise_seed = 5
    assert torch.equal(last_of(8, 7), torch.stack([two, one])), "and by nothing else"


def test_without_chance_nothing_is_drawn(monkeypatch):
    """Neither in a step of training on lines, nor for the straightness; where there is chance, once a sampling."""
    head, batch = build("model.head.reflow_steps=3").head, keyed(images(*SIZES), 7, 8, 9)
    unit, drawn = whole(torch.zeros(()), batch.sizes), []
    plain = head._draws
    monkeypatch.setattr(head, "_draws", lambda *a: drawn.append(a) or plain(*a))
    still = lambda boxes, t: Guess(torch.zeros(*boxes.shape[:2], 4), boxes)  # noqa: E731
    head.start(TARGETS, batch, still)
    head.straightness(still, unit)
    assert drawn == []
    head.sample(still, unit, head.noise(3), 4, 0.5)
    assert len(drawn) == 1


def test_straightness_is_nothing_on_straight_ways_and_known_on_a_bent_one():
    head, unit = build().head, whole(torch.zeros(()), [(64, 96)])
    near, far = (torch.tensor([b]).expand(1, 12, 4) for b in ([[40.0, 30, 50, 40]], [[10.0, 10, 20, 20]]))
    logits = torch.zeros(1, 12, 4)
    assert head.straightness(lambda b, t: Guess(logits, near), unit).item() == pytest.approx(0, abs=1e-10)
    bend = head.straightness(lambda b, t: Guess(logits, far if t[0] < 0.5 else near), unit, steps=2)
    start, one, two = head.noise(1), *(head.states.encode(b, unit) for b in (far, near))
    # half way to far, then all of the rest in half the time: both speeds differ from the mean by as much
    expected = ((one - start) - (two - start)).square().mean() / (two - start).square().mean()
    assert bend.item() == pytest.approx(expected.item(), rel=1e-4)
    head.path = CosinePath()
    assert head.straightness(lambda b, t: Guess(logits, near), unit) > 0.01, "a straight way at another speed"


def test_losses_of_an_evaluation_tell_how_straight_the_ways_are():
    head, batch = build().head, keyed(images(*SIZES), 7, 8, 9)
    maps = features_of(batch)
    assert "flow_straightness" not in head.loss(maps, batch, TARGETS).stats
    with torch.no_grad():
        assert head.loss(maps, batch, TARGETS).stats["flow_straightness"] > 0


def by_hand(head, guess, start, batch, targets):
    return {k: v.item() for k, v in head.loss_of([guess], start, batch, targets).terms.items()}


def test_the_loss_by_hand():
    """Two boxes and one object of class 1 in an image of 100 x 50 px; the second guess is background."""
    head = build().head
    batch = images((50, 100))
    objects = [target((10, 10, 30, 30), labels=[1])]
    guess = Guess(
        torch.tensor([[[0.0, 2, 0, 0], [0, 0, 0, 0]]]), torch.tensor([[[10.0, 10, 30, 20], [70, 30, 90, 40]]])
    )
    start = Start(*(torch.zeros(0),) * 4, torch.tensor([[0, 0]]))
    losses = by_hand(head, guess, start, batch, objects)
    e = torch.tensor(2.0).exp().item()
    log = torch.log
    cls = -(log(torch.tensor(e / (e + 3))) + log(torch.tensor(0.25))).item() / 2
    assert losses["flow_cls"] == pytest.approx(cls)
    # corners / (100, 50): |30 - 20| / 50; 60/100, 20/50, 60/100, 10/50
    assert losses["flow_l1"] == pytest.approx(5 * (0.2 + 0.6 + 0.4 + 0.6 + 0.2) / 2)
    # IoU 1/2 in a hull that is their union; none in a hull of 80 x 30, of which 400 + 200 are covered
    giou = [0.5, 0 - (2400 - 600) / 2400]
    assert losses["flow_iou"] == pytest.approx(2 * sum(1 - g for g in giou) / 2, rel=1e-4)


def test_every_stage_is_in_the_loss_and_boxes_between_them_carry_no_gradient():
    head = build("model.head.auxiliary=null").head
    batch = keyed(images(*SIZES), 7, 8, 9)
    start = head.start(TARGETS, batch)
    guesses = head.decoder(features_of(batch), start.boxes, start.t, batch)
    assert len(guesses) == 3
    total = head.loss_of(guesses, start, batch, TARGETS).total
    each = sum(head.loss_of([g], start, batch, TARGETS).total for g in guesses)
    torch.testing.assert_close(total, each)
    guesses[2].boxes.sum().backward()
    assert head.decoder.box_preds[0].weight.grad is None
    assert head.decoder.box_preds[2].weight.grad is not None


def test_the_decoder_is_told_the_time():
    head = build().head
    for stage in head.decoder.stages:
        torch.nn.init.normal_(stage.film.weight)
    batch = images((64, 96))
    noise = head.noise(1)
    boxes = head.states.decode(noise, whole(noise, batch.sizes))
    early, late = (head.decoder(features_of(batch), boxes, torch.tensor([t]), batch)[-1] for t in (0.1, 0.9))
    assert (early.logits - late.logits).abs().max() > 1e-3


def test_boxes_of_an_image_see_each_other():
    head, batch = build().head, images((64, 96))
    noise = head.noise(1)
    boxes = head.states.decode(noise, whole(noise, batch.sizes))
    moved = boxes.clone()
    moved[0, 0] = torch.tensor([5.0, 5, 9, 9])
    one, two = (head.decoder(features_of(batch), b, torch.zeros(1), batch)[-1].logits[0, 5] for b in (boxes, moved))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("coupling", [OptimalTransport(), Padded()])
def test_an_image_without_objects_and_one_with_more_than_boxes(coupling):
    head = build().head
    head.coupling = coupling
    batch = keyed(images((64, 96), (64, 96)), 1, 2)
    many = target(*((i, i, i + 20, i + 20) for i in range(30)))
    empty = target()
    losses = head.loss(features_of(batch), batch, [empty, many])
    assert all(term.isfinite() for term in losses.terms.values())
    start = head.start([empty, many], batch)
    assert (start.coupled[0] == -1).all()
    assert len(start.coupled[1].unique()) == 12


def test_what_is_ignored_is_neither_coupled_nor_background():
    head, batch = build().head, images((64, 96))
    objects = target((0, 0, 30, 30), (40, 10, 90, 60), ignore=[True, False])
    start = head.start([objects], batch)
    assert (start.coupled == 1).all()
    guess = Guess(torch.zeros(1, 2, 4), torch.tensor([[[1.0, 1, 28, 28], [40, 10, 90, 60]]]))
    (matched,) = head.match(guess, start, batch, [objects])
    assert matched.classes.matched.tolist() == [-2, 1]


def test_steps_and_boxes_change_no_weight():
    """So that a stored checkpoint takes any number of both."""
    one, two = build(), build("model.head.steps=9", "model.head.test_boxes=160", "model.head.ensemble=false")
    two.load_state_dict(one.state_dict())
    assert two.head.noise(1).shape == (1, 160, 4)
    assert torch.equal(two.head.noise(1)[:, :12], one.head.noise(1))


def test_frozen_features_stay():
    head = "model.head.freeze_features=true"
    detector = build(head, "model.head.auxiliary=null").train()
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    detector(images((64, 96)), TARGETS[:1]).total.backward()
    trained = {n.partition(".")[0] for n, p in detector.named_parameters() if p.requires_grad}
    assert trained == {"head"}
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items()), "statistics of norms as well"


def test_a_loss_of_offsets_is_refused():
    with pytest.raises(
        ConfigError, match=r"model\.head: FlowHead: box_loss must compare boxes in px, as GIoULoss does; L1"
    ):
        build("loss@model.head.box_loss=L1")


def test_layers_before_classes_and_boxes_are_diffusiondets():
    """One and three of them, of the decoder's width, in the preset; by default none, and not a name more."""
    plain = build().head
    assert not [name for name in plain.state_dict() if "cls_layers" in name or "box_layers" in name]
    head = build("model.head.decoder.num_stages=2", model="diffusiondet").head
    shapes = {name: tuple(value.shape) for name, value in head.decoder.state_dict().items() if "_layers." in name}
    linear = {f"{kind}_layers.{stage}.{3 * i}.weight": (32, 32) for stage in (0, 1) for kind, i in PLACES}
    assert {n: s for n, s in shapes.items() if len(s) == 2} == linear
    assert len(shapes) == 3 * len(linear), "and a norm behind each, weight and bias; the linear layer has none"
    batch = images(*SIZES)
    boxes = head.states.decode(torch.randn(3, 12, 4), whole(torch.zeros(()), batch.sizes))
    guesses = head.decoder(features_of(batch), boxes, torch.zeros(3), batch)
    assert [(g.logits.shape, g.boxes.shape) for g in guesses] == [((3, 12, 3), (3, 12, 4))] * 2


PLACES = [("cls", 0), ("box", 0), ("box", 1), ("box", 2)]


def test_each_guess_goes_through_its_own_layers():
    """By hand: what a stage knows, through linear, norm and ReLU as often as was said, then the last layer."""
    head = build("model.head.decoder.cls_layers=1", "model.head.decoder.box_layers=2").head
    decoder, told = head.decoder, {}
    for name, module in (("known", decoder.stages), ("cls", decoder.cls_scores), ("box", decoder.box_preds)):
        what = 1 if name == "known" else 0  # what comes out of a stage, and what goes into a last layer
        module[2].register_forward_hook(lambda _, args, out, n=name, w=what: told.update({n: (args[0], out)[w]}))
    batch = images((64, 96))
    boxes = head.states.decode(torch.randn(1, 12, 4), whole(torch.zeros(()), batch.sizes))
    decoder(features_of(batch), boxes, torch.zeros(1), batch)
    for name, layers in (("cls", decoder.cls_layers[2]), ("box", decoder.box_layers[2])):
        seen = told["known"].flatten(0, 1)
        for layer in layers[::3]:
            seen = torch.nn.functional.layer_norm(seen @ layer.weight.T, (32,)).relu()
        torch.testing.assert_close(told[name].view(12, 32), seen, msg=lambda m, name=name: f"{name}: {m}")


def test_gradients_are_finite_for_margin_free_losses_in_the_recipe_of_diffusiondet():
    head = build("model.head.decoder.num_stages=2", model="diffusiondet").head
    batch = keyed(images(*SIZES), 1, 2, 3)
    losses = head.loss(features_of(batch), batch, [TARGETS[0], target(), TARGETS[2]])
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
