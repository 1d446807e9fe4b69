"""Boxes carried from noise to objects: DiffusionDet's idea, along straight lines or along diffusion's.

Chen, Sun, Song, Luo, "DiffusionDet", ICCV 2023; the theory of the paths stands in :mod:`detkit.models.flow`. Departures
from DiffusionDet, of which ``model/head=diffusiondet`` takes back those of the recipe: lines instead of diffusion,
noise coupled to objects by optimal transport, all boxes learn, softmax, a plain layer for a region's grid. Its sampler
drops the boxes of the last step and takes one image at a time; this one does neither. Reflow (Liu, Gong, Liu, ICLR
2023, section 2.2) trains a second flow on pairs that a finished one has made once and for all; here the
pairs are made anew in each step, by the very weights that train, and an end is moved to the object that it lies on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.config import HEADS, Count, Share, Whole
from detkit.losses import L1, BoxLoss, ClassificationLoss
from detkit.matching import Selector, found_in_range
from detkit.models.flow.coupling import Coupling
from detkit.models.flow.decoder import BoxDecoder, Guess
from detkit.models.flow.matchers import Guessed, Matched, Matcher
from detkit.models.flow.path import Path
from detkit.models.flow.state import StateCoder, whole
from detkit.models.heads.common import matched_objects, mean_count
from detkit.models.heads.grid import targets_in_range
from detkit.models.interfaces import Head
from detkit.structures import Detections, FeatureSpec, Images, Losses, Ratio, Target
from detkit.structures.boxes import pairwise_iou
from detkit.structures.target import on_host
from detkit.utils.precision import full_precision, widened
from detkit.utils.seed import generator
from detkit.utils.transfer import sent

#: (boxes (B, N, 4) px, t (B,)) to what is guessed of them: the decoder, or what a test puts in its place.
Denoise = Callable[[Tensor, Tensor], Guess]


class Start(NamedTuple):
    """What a batch is trained on: states ``noise`` and ``data`` (B, N, 4); times ``t`` (B,); the ``boxes`` (B, N, 4)
    px between the two at t; and ``coupled`` (B, N), the number of each one's object in its Target, -1 for none."""

    noise: Tensor
    data: Tensor
    t: Tensor
    boxes: Tensor
    coupled: Tensor


class Step(NamedTuple):
    """One step of sampling: from time ``t``, where the ``states`` (B, N, 4) and their ``boxes`` (B, N, 4) px were, and
    what was guessed of these."""

    t: float
    states: Tensor
    boxes: Tensor
    guess: Guess


@HEADS
class FlowHead(Head):
    """Boxes start as noise and are carried to objects in a few steps; how many of both can be chosen at test.

    Args:
        decoder: guesses from boxes on their way where they end.
        path: the way from noise to data.
        coupling: which noise goes to which object.
        matcher: which guesses are which objects.
        cls_loss: of the classes.
        box_loss, l1_weight: of boxes in px, beside the L1 distance of corners in units of the image with its weight;
            both are means over the boxes that learn.
        selector: what of all steps' boxes comes out.
        auxiliary: another head on the same maps, in training alone: its losses teach the features what objects look
            like while the decoder has yet to learn where to look. null for none.
        num_boxes: boxes of an image in training.
        test_boxes: and at test; null for as many.
        steps: at test.
        scale, min_size: of the states, see :class:`detkit.models.flow.state.StateCoder`.
        renewal: after each step boxes that score less than this become noise again; null keeps them.
        ensemble: detections from the boxes of all steps; false for those of the last.
        noise_seed: of the noise at test, the same for every image, whatever it is batched with.
        reflow_steps: train on the pairs that the flow itself makes: each noise goes to the object that it arrives at in
            so many steps, and to its own end where it arrives at none (reflow: Liu et al., section 2; there ends stay
            what they are, but here an object is known to be the better one, and there a finished flow has made the
            pairs, here the weights in training do). For a second phase, by ``init_from``; null lets ``coupling`` say.
        freeze_features: backbone and neck stay as they are, statistics of their norms included.
    """

    start_noise: Tensor
    step_noise: Tensor

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        decoder: Callable[..., BoxDecoder],
        path: Path,
        coupling: Coupling,
        matcher: Matcher,
        cls_loss: ClassificationLoss,
        box_loss: BoxLoss,
        selector: Selector,
        auxiliary: Head | None = None,
        l1_weight: float = 5.0,
        num_boxes: Count = 40,
        test_boxes: Count | None = None,
        steps: Count = 4,
        scale: float = 2.0,
        min_size: float = 1.0,
        renewal: Share | None = None,
        ensemble: bool = True,
        noise_seed: Whole = 0,
        reflow_steps: Count | None = None,
        freeze_features: bool = False,
    ) -> None:
        super().__init__()
        if box_loss.space != "box":
            raise ValueError(f"box_loss must compare boxes in px, as GIoULoss does; {type(box_loss).__name__} does not")
        self.states = StateCoder(scale=scale, min_size=min_size)
        self.decoder = decoder(states=self.states, cls_loss=cls_loss)
        self.path, self.coupling, self.matcher = path, coupling, matcher
        self.cls_loss, self.box_loss, self.l1, self.selector = cls_loss, box_loss, L1(weight=l1_weight), selector
        self.auxiliary = auxiliary
        self.num_boxes, self.test_boxes, self.steps = num_boxes, test_boxes or num_boxes, steps
        self.renewal, self.ensemble, self.noise_seed = renewal, ensemble, noise_seed
        self.reflow_steps, self.trains_features = reflow_steps, not freeze_features
        self.reads = _reads(self.decoder.pool.num_levels, auxiliary, in_spec)
        # the noise at test is a part of the model: that of the start, and what chance brings in the steps
        self.register_buffer("start_noise", self._draws("flow noise", 1, self.test_boxes), persistent=False)
        self.register_buffer("step_noise", self._draws("flow steps", 2 * steps, self.test_boxes), persistent=False)

    # --- training

    def loss(self, features: Sequence[Tensor], images: Images, targets: Sequence[Target]) -> Losses:
        wanted = targets_in_range(images, targets)
        start = self.start(wanted, images, None if self.reflow_steps is None else self._denoiser(features, images))
        guesses = self.decoder(features, start.boxes, start.t, images)
        losses = self.loss_of(guesses, start, images, wanted)
        if not torch.is_grad_enabled():  # an evaluation, which has time for it
            bend = self.straightness(self._denoiser(features, images), whole(start.noise, images.sizes))
            losses = Losses(losses.terms, {**losses.stats, "flow_straightness": bend})
        if self.auxiliary is None:
            return losses
        return Losses.merge(losses, _prefixed(self.auxiliary.loss(features, images, targets)))

    @torch.no_grad()
    def start(self, targets: Sequence[Target], images: Images, denoise: Denoise | None = None) -> Start:
        """What to train on. All chance is the images' own, by their keys, whatever else is in the batch.

        Args:
            denoise: carries the noise to the ends that reflow wants; without it the coupling says where they are.
        """
        drawn = [self._drawn(t, meta.key, meta.size) for t, meta in zip(on_host(targets), images.meta, strict=True)]
        device = images.pixels.device
        t, *states = (torch.stack(part) for part in zip(*drawn, strict=True))
        noise, data, coupled = (sent(part, device) for part in states)
        if denoise is not None:
            data, coupled = self._ends(noise, denoise, images, targets)
        states = self.path.mix(data, noise, t)
        return Start(noise, data, sent(t, device), self.states.decode(states, whole(states, images.sizes)), coupled)

    def _drawn(self, target: Target, key: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Of one image and its ``target`` on the CPU: t (), noise and data (N, 4), and coupled (N,)."""
        draws = generator(key, "flow")
        t = torch.rand((), generator=draws)
        noise = torch.randn(self.num_boxes, 4, generator=draws)
        wanted, boxes = target.kinds.wanted, target.wanted.boxes[None]
        objects = self.states.encode(boxes, whole(boxes, [size]))[0]
        data, number = self.coupling(noise, objects, self.states.scale, draws)
        if len(wanted):
            number = torch.where(number >= 0, wanted[number.clamp(min=0)], number)
        return t, noise, data, number

    def _ends(
        self, noise: Tensor, denoise: Denoise, images: Images, targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """Where the flow carries ``noise`` (B, N, 4): states (B, N, 4), and the numbers (B, N) of the objects there."""
        assert self.reflow_steps is not None
        unit = whole(noise, images.sizes)
        draws = None
        if self.path.eta:
            by_image = [generator(meta.key, "reflow") for meta in images.meta]
            each = [torch.randn(self.reflow_steps, *noise.shape[1:], generator=draw) for draw in by_image]
            draws = sent(torch.stack(each, dim=1).to(noise.dtype), noise.device)
        ends = self.sample(denoise, unit, noise, self.reflow_steps, draws=draws)[-1].guess.boxes
        ends = self.decoder.bounded(ends, unit)
        boxes, coupled = [], []
        for own, target in zip(ends, targets, strict=True):
            found = _lies_on(own, target)
            coupled.append(found)
            on = (found >= 0)[:, None]
            boxes.append(torch.where(on, target.boxes[found.clamp(min=0)], own) if len(target) else own)
        return self.states.encode(torch.stack(boxes), unit), torch.stack(coupled)

    @full_precision
    def loss_of(self, guesses: Sequence[Guess], start: Start, images: Images, targets: Sequence[Target]) -> Losses:
        """The losses of all stages' ``guesses``, summed over the stages."""
        terms, matched, accuracies = [], [], []
        for guess in guesses:
            matched = self.match(guess, start, images, targets)
            cls_loss, accuracy = self._cls_loss(guess, matched, targets)
            terms.append((cls_loss, *self._box_losses(guess, matched, images, targets)))
            accuracies.append(accuracy)
        cls_term, l1_term, iou_term = (torch.stack(term).sum() for term in zip(*terms, strict=True))
        num_positive = torch.cat([m.classes.positive for m in matched]).sum() / len(matched)
        return Losses(
            {"flow_cls": cls_term, "flow_l1": l1_term, "flow_iou": iou_term},
            {"flow_accuracy": accuracies[-1], "flow_num_pos": num_positive},  # of the last stage
        )

    @torch.no_grad()
    def match(self, guess: Guess, start: Start, images: Images, targets: Sequence[Target]) -> list[Matched]:
        """Which guesses are which objects, in each image."""
        scores = self.cls_loss.scores(guess.logits.flatten(0, 1)).view(*guess.logits.shape[:2], -1)
        return self.matcher(list(map(Guessed, guess.boxes, scores, images.sizes)), start.coupled, targets)

    def _cls_loss(self, guess: Guess, matched: Sequence[Matched], targets: Sequence[Target]) -> tuple[Tensor, Ratio]:
        """The loss of the classes, and the share of positives whose class is found."""
        num_classes = self.cls_loss.scores(guess.logits[0]).shape[1]
        labels = torch.cat([m.classes.labels(t, num_classes) for m, t in zip(matched, targets, strict=True)])
        counted = torch.cat([m.classes.positive | m.classes.negative for m in matched])
        # before the loss too: its gradient at an infinite logit is not finite, and 0 times that is NaN
        logits = guess.logits.flatten(0, 1).masked_fill(~counted[:, None], 0)
        positive = labels < num_classes
        norm = mean_count((positive if self.cls_loss.normalizer == "positives" else counted).sum(), logits)
        with torch.no_grad():
            found = (self.cls_loss.scores(logits).argmax(1) == labels) & positive
        loss = self.cls_loss(logits, labels).masked_fill(~counted, 0).sum() / norm
        return loss, Ratio(found.sum(), positive.sum())

    def _box_losses(
        self, guess: Guess, matched: Sequence[Matched], images: Images, targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """L1 in units of the image, and the loss in px, means over the boxes that learn; 0 with a gradient for none."""
        image, number, wanted, _ = matched_objects(targets, torch.stack([m.objects for m in matched]))
        boxes = guess.boxes[image, number]
        unit = whole(boxes, images.sizes)[image, 0]
        norm = mean_count(len(boxes), boxes)
        return self.l1(boxes / unit, wanted / unit).sum() / norm, self.box_loss(boxes, wanted).sum() / norm

    # --- sampling

    def _denoiser(self, features: Sequence[Tensor], images: Images) -> Denoise:
        return lambda boxes, t: self.decoder(features, boxes, t, images)[-1]

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        unit: Tensor,
        noise: Tensor,
        steps: int,
        renewal: float | None = None,
        draws: Tensor | None = None,
    ) -> list[Step]:
        """Carry ``noise`` (B, N, 4) to the data in ``steps`` steps; boxes that score less than ``renewal`` start anew.

        Args:
            unit: (B, 1, 4), :func:`~detkit.models.flow.state.whole` of the images.
            draws: what chance brings, in as many draws as the steps take (two each at most), whatever became of the
                boxes: (D, N, 4) the same to every image, or (D, B, N, 4). None draws the first from ``noise_seed``,
                where there is chance at all.
        """
        if draws is None and (self.path.eta or renewal is not None):
            draws = sent(self._draws("flow steps", 2 * steps, noise.shape[1]).to(noise.dtype), noise.device)
        drawn = iter(()) if draws is None else iter(draws)
        states, times, taken = noise, self.path.times(steps), []
        for t, s in itertools.pairwise(times):
            boxes = self.states.decode(states, unit)
            guess = Guess(*(widened(x) for x in denoise(boxes, noise.new_full((), t).expand(noise.shape[0]))))
            taken.append(Step(t, states, boxes, guess))
            data = self.states.encode(self.decoder.bounded(guess.boxes, unit), unit)
            states = self.path.step(states, data, t, s, next(drawn) if self.path.eta and s < 1 else None)
            if renewal is not None and s < 1:
                best = self.cls_loss.scores(guess.logits.flatten(0, 1)).amax(1).view(states.shape[:2])
                states = torch.where((best < renewal)[..., None], next(drawn), states)
        return taken

    def straightness(self, denoise: Denoise, unit: Tensor, steps: int = 8) -> Tensor:
        """How far the ways of the boxes are from straight lines at constant speed: 0 for these.

        The mean of |(z1 - z0) - dz/dt|^2 over boxes and time, in ``steps`` steps (Liu et al., section 2, "straight
        couplings"), as a share of the mean of |z1 - z0|^2, so that it does not depend on how far objects are.
        """
        taken = self.sample(denoise, unit, self.noise(len(unit)), steps)
        end = self.states.encode(self.decoder.bounded(taken[-1].guess.boxes, unit), unit)
        states = torch.stack([*(step.states for step in taken), end])
        way = end - states[0]
        return (states.diff(dim=0) * steps - way).square().mean() / way.square().mean().clamp(min=1e-12)

    def noise(self, num_images: int) -> Tensor:
        """(B, N, 4) for the test: the same for every image, so that none depends on what stands beside it or before."""
        return self.start_noise.expand(num_images, -1, -1)

    def _draws(self, what: str, num: int, num_boxes: int) -> Tensor:
        """(num, N, 4) from a standard normal."""
        draws = generator(self.noise_seed, what)
        return torch.stack([torch.randn(num_boxes, 4, generator=draws, device="cpu") for _ in range(num)])

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        guess = self.found(self._denoiser(features, images), whole(self.start_noise, images.sizes))
        return self._select(guess.logits, guess.boxes, images)

    def found(self, denoise: Denoise, unit: Tensor) -> Guess:
        """What the selector chooses from at test: the guesses of the last step, or of all.

        Args:
            unit: (B, 1, 4), :func:`~detkit.models.flow.state.whole` of the images.
        """
        taken = self.sample(denoise, unit, self.noise(unit.shape[0]), self.steps, self.renewal, self.step_noise)
        used = [step.guess for step in (taken if self.ensemble else taken[-1:])]
        return Guess(torch.cat([g.logits for g in used], 1), torch.cat([g.boxes for g in used], 1))

    @torch.no_grad()
    def _select(self, logits: Tensor, boxes: Tensor, images: Images) -> list[Detections]:
        found = []
        for logit, box, meta in zip(logits, boxes, images.meta, strict=True):
            valid = found_in_range(box, meta.size, meta.valid_range)
            valid = None if valid is None else valid[:, None]
            found.append(self.selector.of_each_class(box[:, None], self.cls_loss.scores(logit), meta.size, valid))
        return found


def _lies_on(boxes: Tensor, target: Target) -> Tensor:
    """(N,): the object that each of ``boxes`` (N, 4) overlaps most, by half at least; -1 for none."""
    number = torch.full((len(boxes),), -1, device=boxes.device)
    wanted = target.kinds.wanted
    if len(wanted) == 0:
        return number
    best, index = pairwise_iou(boxes, target.boxes[wanted]).max(1)
    return torch.where(best >= 0.5, wanted[index], number)


def _prefixed(losses: Losses) -> Losses:
    terms = {f"aux_{name}": term for name, term in losses.terms.items()}
    return Losses(terms, {f"aux_{name}": stat for name, stat in losses.stats.items()})


def _reads(num_levels: int, auxiliary: Head | None, in_spec: FeatureSpec) -> tuple[int, ...]:
    """The maps that are read: those of the pool, and the auxiliary head's."""
    of_pool = range(num_levels)
    if auxiliary is None:
        return tuple(of_pool)
    return tuple(sorted({*of_pool, *(range(len(in_spec.strides)) if auxiliary.reads is None else auxiliary.reads)}))
