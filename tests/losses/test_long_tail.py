"""Seesaw, softmax focal, class weights, and first biases by frequency: by plain loops and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from detkit.losses import (
    BCE,
    ArcFace,
    ASoftmax,
    CombinedMargin,
    CosFace,
    CrossEntropy,
    Focal,
    LSoftmax,
    NormalizedSoftmax,
    Seesaw,
    SoftmaxFocal,
)

K = 4
COUNTS = (900, 90, 9, 0)
LABELS = torch.tensor([0, 3, 4, 4, 2, 1])  # 4 is background


@pytest.fixture
def logits():
    return torch.randn(6, K + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def seesaw_by_hand(logits, labels, counts, p, q):
    """Wang et al. 2021, equations 3 to 6, number by number."""
    losses = []
    for row, i in zip(logits.tolist(), labels.tolist(), strict=True):
        *z, background = row
        loss = math.log1p(math.exp(-background if i == K else background))
        if i < K:
            total = sum(math.exp(v) for v in z)
            score = [max(math.exp(v) / total, 1e-2) for v in z]
            n = [max(count, 1) for count in counts]
            m = [min(1.0, (n[j] / n[i]) ** p) for j in range(K)]
            c = [max(1.0, (score[j] / score[i]) ** q) for j in range(K)]
            s = [1.0 if j == i else m[j] * c[j] for j in range(K)]
            loss -= math.log(math.exp(z[i]) / sum(s[j] * math.exp(z[j]) for j in range(K)))
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(("p", "q"), [(0.8, 2.0), (0.0, 2.0), (0.8, 0.0)])
def test_seesaw_is_the_papers(logits, p, q):
    loss = Seesaw(p=p, q=q, class_counts=COUNTS)
    torch.testing.assert_close(loss(logits, LABELS), seesaw_by_hand(logits, LABELS, COUNTS, p, q))


def test_seesaw_without_its_factors_is_cross_entropy_beside_objectness(logits):
    objects = LABELS < K
    found = Seesaw(p=0, q=0, class_counts=COUNTS)(logits, LABELS)
    objectness = F.binary_cross_entropy_with_logits(logits[:, -1], (~objects).double(), reduction="none")
    plain = F.cross_entropy(logits[objects][:, :-1], LABELS[objects], reduction="none")
    torch.testing.assert_close(found - objectness, torch.zeros(6).double().masked_scatter(objects, plain))
    torch.testing.assert_close(Seesaw(class_counts=None, q=0)(logits, LABELS), found)


def test_seesaw_pushes_a_rare_class_down_less(logits):
    gradients = {}
    for counts in (COUNTS, None):
        z = torch.zeros(1, K + 1, dtype=torch.float64, requires_grad=True)
        Seesaw(class_counts=counts)(z, torch.tensor([0])).sum().backward()
        gradients[counts] = z.grad[0]
    rare, frequent = gradients[COUNTS][2].item(), gradients[COUNTS][1].item()
    assert 0 < rare < frequent < gradients[None][1].item()


def test_seesaws_factors_have_no_gradient_and_its_scores_are_a_softmax_of_objects(logits):
    z = logits.clone().requires_grad_()
    loss = Seesaw(class_counts=COUNTS)
    factors = loss.log_factors(z[:2, :-1].detach(), LABELS[:2])
    assert not factors.requires_grad
    torch.testing.assert_close(loss.scores(z).sum(1), (-z[:, -1]).sigmoid())
    assert loss.scores(loss.initial_bias(K)[None]).sum().item() == pytest.approx(0.25)


def test_a_class_that_a_sample_is_taken_for_is_pushed_down_by_a_constant_factor():
    """Logits 0 and log 2: S_01 = ((2/3) / (1/3))^2 = 4 has no gradient, so p_1 = 4 * 2 / (1 + 4 * 2)."""
    z = torch.tensor([[0.0, math.log(2), 0.0]], requires_grad=True)
    Seesaw(q=2.0)(z, torch.tensor([0])).sum().backward()
    assert z.grad[0].tolist() == pytest.approx([-8 / 9, 8 / 9, 0.5])


def test_seesaw_of_some_classes_has_their_counts(logits):
    some = torch.tensor([0, 2])
    columns = torch.tensor([0, 2, 4])
    labels, drawn = torch.tensor([0, 1, 2, 2, 1, 0]), Seesaw(class_counts=COUNTS).of_classes(some, torch.ones(2))
    found = drawn(logits[:, columns], labels)
    expected = Seesaw(class_counts=(900, 9))(logits[:, columns], labels)
    torch.testing.assert_close(found, expected)


def test_softmax_focal_by_hand(logits):
    p = logits.softmax(1)[range(6), LABELS]
    expected = torch.where(LABELS < K, 0.25, 0.75) * (1 - p) ** 2 * -p.log()
    torch.testing.assert_close(SoftmaxFocal()(logits, LABELS), expected)
    plain = SoftmaxFocal(alpha=-1, gamma=0)(logits, LABELS)
    torch.testing.assert_close(plain, F.cross_entropy(logits, LABELS, reduction="none"))
    weighted = SoftmaxFocal(class_weights=(1, 2, 3, 4))(logits, LABELS)
    torch.testing.assert_close(weighted, expected * torch.tensor([1, 4, 1, 1, 3, 2]))
    assert SoftmaxFocal().scores(SoftmaxFocal().initial_bias(K)[None]).sum().item() == pytest.approx(0.01)
    assert SoftmaxFocal.normalizer == "positives"


def test_class_weights_are_factors_on_each_classes_samples(logits):
    weights = (0.5, 2.0, 3.0, 4.0)
    plain = F.cross_entropy(logits, LABELS, reduction="none")
    found = CrossEntropy(class_weights=weights, background_weight=0.1)(logits, LABELS)
    torch.testing.assert_close(found, plain * torch.tensor([0.5, 4.0, 0.1, 0.1, 3.0, 2.0]))
    torch.testing.assert_close(CrossEntropy(class_weights=(1.0,) * K)(logits, LABELS), plain)
    only = CrossEntropy(background_weight=0.1)(logits, LABELS)
    torch.testing.assert_close(only, plain * torch.tensor([1, 1, 0.1, 0.1, 1, 1]))


def test_class_weights_are_factors_on_each_classes_sigmoid(logits):
    logits, weights = logits[:, :K], (0.5, 2.0, 3.0, 4.0)
    by_class = torch.stack([BCE()(logits[:, k : k + 1], torch.where(k == LABELS, 0, 1)) for k in range(K)], 1)
    torch.testing.assert_close(BCE(class_weights=weights)(logits, LABELS), (by_class * torch.tensor(weights)).sum(1))


@pytest.mark.parametrize("loss", [CrossEntropy, BCE, SoftmaxFocal])
def test_drawn_classes_keep_their_own_weights(loss):
    drawn = loss(class_weights=(1.0, 2.0, 3.0)).of_classes(torch.tensor([2, 0]), torch.ones(2))
    assert drawn.class_weights == (3.0, 1.0)


@pytest.mark.parametrize("loss", [CrossEntropy, BCE, SoftmaxFocal])
def test_weights_of_another_number_of_classes_are_refused(loss):
    with pytest.raises(ValueError, match="class_weights must have a number for each of the 4 classes, not 3"):
        loss(class_weights=(1.0, 2.0, 3.0)).num_outputs(4)
    with pytest.raises(ValueError, match=r"class_weights must be numbers from 0 on, not \[1.0, -2.0\]"):
        loss(class_weights=(1.0, -2.0)).num_outputs(2)


@pytest.mark.parametrize("loss", [CrossEntropy, SoftmaxFocal])
def test_a_softmax_starts_with_each_classes_share_of_the_prior(loss):
    made = loss(prior_prob=0.2, frequency_bias=True, class_counts=COUNTS)
    scores = made.scores(made.initial_bias(K)[None])[0]
    shares = (torch.tensor(COUNTS) + 1) / (sum(COUNTS) + K)
    torch.testing.assert_close(scores, 0.2 * shares)


@pytest.mark.parametrize("loss", [BCE, Focal])
def test_sigmoids_start_with_a_mean_of_the_prior(loss):
    counts = (40, 30, 20, 10)
    made = loss(prior_prob=0.1, frequency_bias=True, class_counts=counts)
    scores = made.scores(made.initial_bias(K)[None])[0]
    torch.testing.assert_close(scores, 0.1 * K * (torch.tensor(counts) + 1) / (sum(counts) + K))
    assert scores.mean().item() == pytest.approx(0.1)
    steep = loss(prior_prob=0.4, frequency_bias=True, class_counts=COUNTS)
    assert steep.scores(steep.initial_bias(K)[None]).max().item() == pytest.approx(0.5)


def test_the_first_loss_is_less_by_what_the_frequencies_tell():
    """Over objects drawn by their frequency the first loss falls from log K to the entropy: by closed form."""
    labels = torch.arange(K).repeat_interleave(torch.tensor(COUNTS))
    values = []
    for frequency_bias in (False, True):
        loss = CrossEntropy(prior_prob=0.5, frequency_bias=frequency_bias, class_counts=COUNTS)
        values.append(loss(loss.initial_bias(K).expand(len(labels), -1), labels).mean().item())
    q = (torch.tensor(COUNTS[:3]) + 1) / (sum(COUNTS) + K)
    share = torch.tensor(COUNTS[:3]) / sum(COUNTS)
    assert values[0] == pytest.approx(math.log(2 * K), abs=1e-5)
    assert values[1] == pytest.approx(math.log(2) - float((share * q.log()).sum()), abs=1e-5)


def test_what_frequencies_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="frequency_bias shares prior_prob out among the classes: give that too"):
        CrossEntropy(frequency_bias=True)
    with pytest.raises(ValueError, match="is for the 4 classes of the data; this head tells 1 apart"):
        BCE(prior_prob=0.1, frequency_bias=True, class_counts=COUNTS).initial_bias(1)
    uniform = CrossEntropy(prior_prob=0.1, frequency_bias=True)
    torch.testing.assert_close(uniform.initial_bias(3), CrossEntropy(prior_prob=0.1).initial_bias(3))


COSINES = [NormalizedSoftmax, CosFace, ArcFace, CombinedMargin, LSoftmax, ASoftmax]


def cosine_logits(loss):
    torch.manual_seed(0)
    return loss.make_layer(8, K)(torch.randn(len(LABELS), 8)).detach()


@pytest.mark.parametrize("made", COSINES)
def test_cosines_are_told_the_frequencies_in_the_loss_and_not_in_the_scores(made):
    """By hand: the sum over classes has a factor K pi_k for each, and background's factor is 1."""
    plain, told = made(), made(frequency_bias=True, class_counts=COUNTS)
    logits = cosine_logits(plain)
    factor = [*(K * (count + 1) / (sum(COUNTS) + K) for count in COUNTS), 1.0]
    for row, (label, found) in enumerate(zip(LABELS.tolist(), told(logits, LABELS).tolist(), strict=True)):
        moved = plain.with_margin(logits, LABELS)[row].tolist()
        total = sum(f * math.exp(z) for f, z in zip(factor, moved, strict=True))
        assert found == pytest.approx(math.log(total) - moved[label] - math.log(factor[label]), abs=1e-5)
    torch.testing.assert_close(told.scores(logits), plain.scores(logits), rtol=0, atol=0)
    for without in (made(frequency_bias=True), made(class_counts=COUNTS)):
        torch.testing.assert_close(without(logits, LABELS), plain(logits, LABELS), rtol=0, atol=0)


def test_drawn_classes_are_told_what_they_are_among_all():
    loss = CosFace(frequency_bias=True, class_counts=COUNTS)
    logits, some = cosine_logits(loss), torch.tensor([0, 2])
    labels = torch.tensor([0, 1, 2, 2, 1, 0])[: len(logits)]
    unlikely, among_all = logits.clone(), torch.tensor([0, 2, K])[labels]
    unlikely[:, [1, 3]] = -1e4
    for each in (loss, CosFace()):
        found = each.of_classes(some, torch.ones(len(some)))(logits[:, [0, 2, K]], labels)
        torch.testing.assert_close(found, each(unlikely, among_all))
