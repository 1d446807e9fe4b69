"""Margin losses: a peer's values, closed forms, identities, gradients at the ends, and background's place."""

import math

import pytest
import torch
import torch.nn.functional as F

from detkit.losses import (
    ArcFace,
    ASoftmax,
    CombinedMargin,
    CosFace,
    CosineClassLayer,
    LSoftmax,
    NormalizedSoftmax,
    Seesaw,
)
from detkit.losses.angles import arccosine, falling_cosine, psi
from detkit.utils.step import training_step

#: Four features and the weights of five classes, with the losses that pytorch-metric-learning 2.9.0 gives for them; its
#: margin of ArcFace is in degrees, and it has no background.
X = torch.tensor(
    [
        [
            -2.310411800234176,
            -0.3732508612577643,
            -1.0608166785462863,
            0.9995093547811761,
            -0.8840250045832653,
            -1.2755469302148053,
        ],
        [
            -0.623224579866079,
            -0.8664416019125772,
            0.23871805816817063,
            0.7335283685272841,
            -1.3218818291421377,
            1.3148113651971234,
        ],
        [
            -1.4874956356507338,
            -0.7135753396468577,
            0.519998663178938,
            -0.9528856397032842,
            0.6748575435940039,
            1.0468653769814655,
        ],
        [
            0.15429517864658948,
            -0.7498915228391941,
            -0.7233897004977882,
            0.08636989238234997,
            -1.746404903728242,
            1.041012457033509,
        ],
    ],
    dtype=torch.float64,
)
W = torch.tensor(
    [
        [0.7970100169250297, 0.21166418145300325, 0.13557114260567418, -0.033892918655373555, 0.4604689979691664],
        [1.117443076566861, 0.36904473680395194, -0.1872021932975887, -0.013720701456433322, -0.19960822763281003],
        [-1.6564246944540333, 0.9138982512742285, 1.154696227582466, -0.0860751366873787, -1.7631617835191395],
        [1.0107316682629284, 0.1310043158655339, -1.3573113137879664, -0.10838763128289962, 0.31513023689422354],
        [-0.5225708759493426, -0.5919985649213804, 0.05398594882285299, 1.4744415042312724, 1.0134077354194326],
        [0.8542078805744913, 0.10964498670108681, 0.7026474746204678, 0.3808407948449979, -0.06602759867830545],
    ],
    dtype=torch.float64,
).T
LABELS = torch.tensor([0, 2, 4, 2])
PEER = {
    "arcface": (ArcFace(scale=64, margin=math.radians(28.64788975654116), prior_prob=None), 54.978520611447635),
    "cosface": (CosFace(scale=64, margin=0.35, prior_prob=None), 47.37406349695284),
    "sphereface": (ASoftmax(margin=4, lambda_min=0, prior_prob=None), 9.217896544058082),
    "normalized": (NormalizedSoftmax(scale=1 / 0.015625, prior_prob=None), 24.976564716730497),
}
NO_BACKGROUND = -1e9

ALL = [
    NormalizedSoftmax(),
    CosFace(),
    ArcFace(),
    CombinedMargin(),
    CombinedMargin(margins=(3.0, 0.4, 0.1)),
    LSoftmax(lambda_min=0.5),
    ASoftmax(lambda_min=0.5),
]


def name(value):
    return type(value).__name__


def layer_of(loss, weight=W, background=NO_BACKGROUND):
    """The loss's layer in float64 with class weights (K, C), background a constant."""
    layer = loss.make_layer(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.background.weight.zero_()
        layer.background.bias.fill_(background)
    return layer


@pytest.mark.parametrize("key", PEER)
def test_losses_equal_the_peers(key):
    loss, expected = PEER[key]
    assert loss(layer_of(loss)(X), LABELS).mean().item() == pytest.approx(expected, abs=1e-6)


def angles():
    return torch.arccos(F.normalize(X) @ F.normalize(W).T)


def softmax_loss(own, others):
    """-log(e^own / (e^own + sum e^others)) by plain loops: ``own`` (N,), ``others`` (N, K), of which LABELS is left out."""
    losses = []
    for i, label in enumerate(LABELS.tolist()):
        total = math.exp(own[i]) + sum(math.exp(others[i, k]) for k in range(others.shape[1]) if k != label)
        losses.append(math.log(total) - own[i].item())
    return torch.tensor(losses, dtype=torch.float64)


def psi_by_hand(theta, m):
    """Equation 6 of Liu et al. 2016: the piece is searched, the cosine is of the angle itself."""
    values = []
    for t in theta.tolist():
        piece = next(k for k in range(m) if k * math.pi / m <= t <= (k + 1) * math.pi / m)
        values.append((-1) ** piece * math.cos(m * t) - 2 * piece)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_psi_is_the_papers_and_falls(m):
    theta = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    values = psi(theta.cos(), m)
    torch.testing.assert_close(values, psi_by_hand(theta, m))
    assert (values.diff() < 0).all()
    torch.testing.assert_close(falling_cosine(m * theta), values, rtol=1e-7, atol=1e-7)


def test_closed_forms_by_hand():
    own, every = angles()[range(4), LABELS], angles().cos()
    length = X.norm(dim=1)
    product = length[:, None] * W.norm(dim=1)
    cases = [
        (NormalizedSoftmax(scale=30), 30 * own.cos(), 30 * every),
        (CosFace(scale=30, margin=0.4), 30 * (own.cos() - 0.4), 30 * every),
        (ArcFace(scale=30, margin=0.7), 30 * (own + 0.7).cos(), 30 * every),
        (CombinedMargin(scale=30, margins=(1.2, 0.3, 0.2)), 30 * ((1.2 * own + 0.3).cos() - 0.2), 30 * every),
        (LSoftmax(margin=3, lambda_min=0), product[range(4), LABELS] * psi_by_hand(own, 3), product * every),
        (ASoftmax(margin=4, lambda_min=0), length * psi_by_hand(own, 4), length[:, None] * every),
        (
            ASoftmax(margin=2, lambda_min=3),
            length * (3 * own.cos() + psi_by_hand(own, 2)) / 4,
            length[:, None] * every,
        ),
    ]
    assert own.max() + 0.7 < math.pi, "these cases stay clear of the fallback"
    for loss, expected, others in cases:
        values = loss(layer_of(loss)(X), LABELS)
        torch.testing.assert_close(values, softmax_loss(expected, others), rtol=0, atol=1e-6, msg=name(loss))


def test_arcface_past_pi_is_the_authors_straight_line():
    weight, label = -X[:1], torch.tensor([0])
    loss = ArcFace(scale=10, margin=0.5)
    moved = loss.with_margin(layer_of(loss, weight)(X[:1]), label)
    assert moved[0, 0].item() == pytest.approx(10 * (-1 - 0.5 * math.sin(0.5)), abs=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ArcFace(scale=9, margin=0), NormalizedSoftmax(scale=9)),
        (CosFace(scale=9, margin=0), NormalizedSoftmax(scale=9)),
        (CombinedMargin(scale=9, margins=(1, 0, 0)), NormalizedSoftmax(scale=9)),
        (CombinedMargin(scale=9, margins=(1, 0.5, 0)), ArcFace(scale=9, margin=0.5)),
        (CombinedMargin(scale=9, margins=(1, 0, 0.3)), CosFace(scale=9, margin=0.3)),
    ],
)
def test_without_a_margin_it_is_the_cosine_softmax(one, other):
    results = [(loss(layer_of(loss)(X), LABELS), loss.scores(layer_of(loss)(X))) for loss in (one, other)]
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-7)


def test_with_a_factor_of_1_on_the_angle_it_is_the_modified_softmax():
    plain = X.norm(dim=1, keepdim=True) * angles().cos()
    loss = ASoftmax(margin=1)
    torch.testing.assert_close(
        loss(layer_of(loss)(X), LABELS), F.cross_entropy(plain, LABELS, reduction="none"), rtol=1e-6, atol=1e-6
    )
    loss = LSoftmax(margin=1)
    torch.testing.assert_close(
        loss(layer_of(loss)(X), LABELS), F.cross_entropy(X @ W.T, LABELS, reduction="none"), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("loss", ALL, ids=name)
def test_gradients_are_right_of_features_and_weights(loss):
    layer = layer_of(loss, background=0.3)
    labels = torch.tensor([0, 2, 5, 4])  # 5 is background

    def total(x, weight, background, bias):
        parts = {"weight": weight, "background.weight": background, "background.bias": bias}
        return loss(torch.func.functional_call(layer, parts, (x,)), labels)

    inputs = [X, W, 0.1 * X[:1], X[0, :1]]
    assert torch.autograd.gradcheck(total, [part.clone().requires_grad_() for part in inputs])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("loss", ALL, ids=name)
def test_gradients_are_finite_at_cosines_of_1_and_minus_1(loss, sign, dtype):
    weight = W.to(dtype).clone().requires_grad_()
    x = torch.cat([sign * W[:3], sign * 1e3 * W[:1], torch.zeros(1, 6)]).to(dtype).requires_grad_()
    layer = layer_of(loss).to(dtype)
    logits = torch.func.functional_call(layer, {"weight": weight}, (x,))
    value = loss(logits, torch.tensor([0, 1, 2, 0, 0])).sum()
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 1e4, "nor absurd, where a feature has no direction"
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("loss", ALL, ids=name)
def test_the_logit_of_a_regions_own_class_has_a_finite_gradient_at_the_very_ends(loss):
    cosine = torch.tensor([1.0, 1 - 6e-8, -1.0, -1 + 6e-8], requires_grad=True)
    value = loss.of_own_class(cosine, torch.full((4,), 20.0))
    (gradient,) = torch.autograd.grad(value.sum(), cosine)
    assert value.isfinite().all()
    assert gradient.abs().max() < 2e5
    assert gradient.isfinite().all()


def test_the_angle_has_a_finite_gradient_at_its_ends():
    cosine = torch.tensor([-1.0, -0.3, 0.0, 0.8, 1.0], requires_grad=True)
    angle = arccosine(cosine)
    torch.testing.assert_close(angle, cosine.detach().arccos(), atol=1e-3, rtol=0)
    (gradient,) = torch.autograd.grad(angle.sum(), cosine)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[1:4], -1 / (1 - cosine.detach()[1:4] ** 2).sqrt())


@pytest.mark.parametrize("loss", ALL, ids=name)
def test_float32_from_the_cosine_on(loss):
    torch.manual_seed(0)
    layer = loss.make_layer(64, 5)
    x = torch.randn(7, 64).bfloat16()
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 5])
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x)
        value = loss(logits, labels)
    assert logits.dtype == value.dtype == torch.float32
    torch.testing.assert_close(value, loss(layer(x.float()), labels), rtol=0, atol=0)


@pytest.mark.parametrize("loss", ALL, ids=name)
def test_background_has_no_margin_and_no_scale(loss):
    layer = layer_of(loss, background=0.0)
    with torch.no_grad():
        layer.background.weight.copy_(0.1 * X[1])
        layer.background.bias.fill_(0.7)
    logits = layer(X)
    background = torch.full((4,), 5)
    plain = 0.1 * X @ X[1] + 0.7
    torch.testing.assert_close(logits[:, 5], plain)
    torch.testing.assert_close(loss.with_margin(logits, background), logits[:, :6], rtol=0, atol=0)
    moved = loss.with_margin(logits, LABELS)
    torch.testing.assert_close(moved[:, 5], plain)
    longer = layer(10 * X)
    torch.testing.assert_close(longer[:, 5], 10 * (plain - 0.7) + 0.7, msg="it is not normalised")


@pytest.mark.parametrize("loss", ALL, ids=name)
def test_only_a_regions_own_class_has_the_margin(loss):
    logits = layer_of(loss, background=0.3)(X)
    moved = loss.with_margin(logits, LABELS)
    others = torch.ones(4, 6, dtype=torch.bool)
    others[range(4), LABELS] = False
    torch.testing.assert_close(moved[others], logits[:, :6][others], rtol=0, atol=0)
    if not isinstance(loss, NormalizedSoftmax):
        assert (moved < logits[:, :6])[range(4), LABELS].all(), "a margin makes it harder, whatever the angle"
    torch.testing.assert_close(loss.scores(logits), logits[:, :6].softmax(1)[:, :5], rtol=0, atol=0)


@pytest.mark.parametrize(("num_classes", "scale"), [(3, 20.0), (80, 20.0), (80, 64.0), (5000, 20.0), (5000, 64.0)])
@pytest.mark.parametrize("prior", [0.25, 0.01])
def test_untrained_classes_share_the_prior(num_classes, scale, prior):
    """For random features, as the layers before it give at first; without the terms of K and s this is far off."""
    torch.manual_seed(0)
    loss = CosFace(scale=scale, prior_prob=prior)
    layer = loss.make_layer(256, num_classes)
    with torch.no_grad():
        found = loss.scores(layer(torch.randn(200, 256))).sum(1)
    odds = (found / (1 - found)).log().mean().exp()
    assert odds.item() == pytest.approx(prior / (1 - prior), rel=0.6 if num_classes < 80 else 0.35)
    without = CosFace(scale=scale, prior_prob=None)
    with torch.no_grad():
        assert without.scores(without.make_layer(256, num_classes)(torch.randn(20, 256))).sum(1).mean() > 0.7


def test_a_map_starts_as_the_layer_of_its_neighbourhoods_does():
    """A cell's 3 x 3 neighbourhood of 8 channels has the directions of 72 numbers."""
    loss = NormalizedSoftmax()
    start = loss.start_of(72, 5)
    assert loss.make_map(8, 2, 5).background.bias.tolist() == pytest.approx([start] * 2)
    assert loss.make_layer(72, 5).background.bias.item() == pytest.approx(start)


def test_a_scale_that_no_cosine_could_win_with_is_refused():
    with pytest.raises(ValueError, match=r"scale must be above 11\.0 for 20000 classes and prior_prob 0\.25, not 8"):
        CosFace(scale=8.0).make_layer(1024, 20000)
    assert isinstance(CosFace(scale=12.0).make_layer(1024, 20000), CosineClassLayer)


def test_a_trained_object_wins_against_background_by_its_cosine():
    """b / s is the cosine from which on a region is an object rather than nothing."""
    loss = CosFace(scale=20.0)
    layer = layer_of(loss, W[:1], background=20 * 0.6)
    for angle, wins in ((math.acos(0.65), True), (math.acos(0.55), False)):
        along, across = F.normalize(W[:1]), F.normalize(torch.tensor([[1.0, 0, 0, 0, 0, 0]]).double())
        across = F.normalize(across - (across @ along.T) * along)
        x = 7.0 * (math.cos(angle) * along + math.sin(angle) * across)
        assert bool(loss.scores(layer(x)) > 0.5) is wins


@pytest.mark.parametrize("loss", [CosFace(warmup_steps=10), ArcFace(warmup_steps=10), CombinedMargin(warmup_steps=10)])
def test_the_margin_grows_by_the_step_of_the_training(loss):
    plain = NormalizedSoftmax(scale=loss.scale)
    full = type(loss)()
    logits = layer_of(loss)(X)

    def at(step):
        with training_step(step):
            return loss(logits, LABELS).mean()

    torch.testing.assert_close(at(1), plain(logits, LABELS).mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(at(11), full(logits, LABELS).mean(), rtol=0, atol=0)
    torch.testing.assert_close(at(500), at(11), rtol=0, atol=0)
    assert at(1) < at(4) < at(8) < at(11)
    torch.testing.assert_close(loss(logits, LABELS).mean(), at(11), rtol=0, atol=0, msg="outside training: the whole")


def test_lambda_is_the_authors():
    loss = ASoftmax(lambda_min=2.0)
    for step, expected in ((1, 1000.0), (1001, 1000 * (1 + 2.5e-2) ** -35), (10**6, 2.0)):
        with training_step(step):
            assert loss.annealing.now == pytest.approx(expected)
    assert loss.annealing.now == 2.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CosFace(scale=0), "scale must be above 0, not 0"),
        (lambda: CosFace(margin=-0.1), "margin must be a number from 0 on, not -0.1"),
        (lambda: ArcFace(margin=2.0), "margin is an angle in radians, from 0 to below pi / 2, not 2.0"),
        (
            lambda: CombinedMargin(margins=(0.5, 0, 0)),
            "the first of margins is a factor on the angle, from 1 on, not 0.5",
        ),
        (lambda: CombinedMargin(margins=(1, 3.0, 0)), "the second of margins is an angle"),
        (lambda: ASoftmax(lambda_min=-1), "lambda_min must be a number from 0 on, not -1"),
        (lambda: NormalizedSoftmax(prior_prob=1.0), "prior_prob must lie between 0 and 1, not 1.0"),
    ],
)
def test_what_no_margin_can_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("loss", [*ALL, Seesaw()], ids=name)
def test_a_layer_can_be_made_without_memory(loss):
    """As a checkpoint of other classes asks for, to learn which tensors depend on their number."""
    with torch.device("meta"):
        layer, of_map = loss.make_layer(16, 5), loss.make_map(8, 2, 5)
    assert layer.weight.shape == (5, 16)
    assert of_map.weight.device.type == "meta"
    assert loss.make_layer(16, 5).background.bias.item() != 0, "and elsewhere background starts at its prior"
