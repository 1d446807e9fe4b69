"""States, paths and couplings of flowing boxes."""

import itertools
import math

import pytest
import torch

from detkit.config import PATHS, build
from detkit.models.flow.coupling import OptimalTransport, Padded
from detkit.models.flow.path import CosinePath, LinearPath
from detkit.models.flow.state import StateCoder, whole
from detkit.utils.seed import generator

D = torch.float64
PATHS_OF_THE_HOUSE = [LinearPath(), CosinePath(), CosinePath(eta=1.0)]


def number(x):
    return torch.tensor(float(x), dtype=D)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def walk(path, state, guess, times):
    """Steps over ``times``, where ``guess(x, t)`` says what data x at t leads to."""
    for t, s in itertools.pairwise(times):
        state = path.step(state, guess(state, t), t, s, torch.zeros_like(state))
    return state


def test_a_box_comes_back_from_its_state():
    g = torch.Generator().manual_seed(0)
    sizes = [(480, 640), (100, 31)]
    corner = torch.rand(2, 50, 2, generator=g) * 0.6
    unit = torch.cat([corner, corner + 0.05 + torch.rand(2, 50, 2, generator=g) * 0.3], dim=-1)
    boxes = unit * torch.tensor([[640, 480, 640, 480], [31, 100, 31, 100.0]])[:, None]
    coder, unit = StateCoder(scale=2.0), whole(boxes, sizes)
    states = coder.encode(boxes, unit)
    assert states.abs().max() <= 2
    torch.testing.assert_close(coder.decode(states, unit), boxes, rtol=0, atol=1e-3)


def test_the_state_of_a_box_by_hand():
    box = torch.tensor([[[0, 0, 320.0, 120]]])
    states = StateCoder(scale=2.0).encode(box, whole(box, [(480, 640)]))
    assert states[0, 0].tolist() == pytest.approx([-1, -1.5, 0, -1])  # u = 1/4, 1/8, 1/2, 1/4


def test_no_state_makes_an_empty_box():
    noise = 3 * randn(1, 1000, 4)
    boxes = StateCoder(scale=1.0, min_size=3.0).decode(noise, whole(noise, [(50, 80)]))
    assert (boxes[..., 2:] - boxes[..., :2]).min() >= 3 - 1e-9
    centre = (boxes[..., 2:] + boxes[..., :2]) / 2
    assert centre.min() >= 0
    assert (centre <= torch.tensor([80, 50])).all()


@pytest.mark.parametrize("path", PATHS_OF_THE_HOUSE)
def test_a_path_leads_from_noise_to_data(path):
    data, noise = randn(3, 5, 4), randn(3, 5, 4, seed=1)
    assert torch.equal(path.mix(data, noise, torch.zeros(3)), noise)
    torch.testing.assert_close(path.mix(data, noise, torch.ones(3)), data, rtol=0, atol=1e-12)
    times = path.times(100)
    assert all(path.alpha(t) < path.alpha(s) for t, s in itertools.pairwise(times))
    assert all(path.sigma(t) > path.sigma(s) for t, s in itertools.pairwise(times))
    mixed = path.mix(data, noise, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(mixed[0], noise[0]), "each image has a time of its own"
    assert not torch.equal(mixed[1], data[1])


def test_every_path_of_the_registry_is_tested_here():
    assert {type(p).__name__ for p in PATHS_OF_THE_HOUSE} == set(PATHS)
    assert build({"_target_": "CosinePath", "eta": 0.5}).eta == 0.5


def test_the_velocity_of_a_linear_path_by_finite_difference():
    path, data, noise, h = LinearPath(), randn(1, 5, 4), randn(1, 5, 4, seed=1), 1e-5
    for t in (0.2, 0.7):
        ahead, behind = (path.mix(data, noise, torch.tensor([t + d], dtype=D)) for d in (h, -h))
        state = path.mix(data, noise, torch.tensor([t], dtype=D))
        velocity = (ahead - behind) / (2 * h)
        torch.testing.assert_close(velocity, data - noise, rtol=0, atol=1e-8)
        torch.testing.assert_close(velocity, (data - state) / (1 - t), rtol=0, atol=1e-8)
        stepped = path.step(state, data, t, t + h)
        torch.testing.assert_close((stepped - state) / h, velocity, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [[0, 1], [0, 0.5, 1], [0, 0.01, 0.02, 0.9, 1], [k / 50 for k in range(51)]])
def test_euler_on_a_straight_path_is_exact(grid):
    data, noise = randn(5, 4), randn(5, 4, seed=1)
    end = walk(LinearPath(), noise, lambda x, t: data, grid)
    torch.testing.assert_close(end, data, rtol=0, atol=1e-12)


def test_eulers_error_for_a_linear_velocity_falls_with_the_step():
    """v = A x ends at exp(A) x0; guessing x1 = x + (1 - t) v makes the linear path's step Euler's."""
    a = torch.tensor([[0.3, -1.0], [0.8, 0.2]], dtype=D)
    start = torch.tensor([[1.0, 2.0]], dtype=D)
    exact = start @ torch.linalg.matrix_exp(a).T
    errors = []
    for steps in (10, 20, 40, 80):
        end = walk(LinearPath(), start, lambda x, t: x + (1 - t) * (x @ a.T), LinearPath().times(steps))
        errors.append((end - exact).norm().item())
    ratios = [b / a for a, b in itertools.pairwise(errors)]
    assert all(0.45 < r < 0.56 for r in ratios), "first order: half the step, half the error"


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("path", [LinearPath(), CosinePath()])
def test_without_chance_a_state_stays_on_its_own_path(path, steps):
    data, noise = randn(1, 5, 4), randn(1, 5, 4, seed=1)
    state, times = noise, path.times(steps)
    for t, s in itertools.pairwise(times):
        state = path.step(state, data, t, s)
        torch.testing.assert_close(state, path.mix(data, noise, torch.tensor([s])), rtol=0, atol=1e-6)


def test_eta_one_has_the_mean_and_variance_of_ddpms_posterior():
    """Ho et al. 2020, equations 6 and 7, with abar_t = alpha(t)^2 and the alpha of one step their quotient."""
    path, t, s = CosinePath(eta=1.0), 0.4, 0.45
    abar_t, abar_s = path.alpha(t) ** 2, path.alpha(s) ** 2
    alpha, beta = abar_t / abar_s, 1 - abar_t / abar_s
    data, state = 1.3, -0.4
    mean = math.sqrt(abar_s) * beta / (1 - abar_t) * data + math.sqrt(alpha) * (1 - abar_s) / (1 - abar_t) * state
    variance = (1 - abar_s) / (1 - abar_t) * beta
    drawn = path.step(torch.full((200_000,), state, dtype=D), number(data), t, s, randn(200_000))
    assert drawn.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / 200_000))
    assert drawn.var().item() == pytest.approx(variance, rel=0.015)


def test_optimal_transport_shares_the_noises_out_among_the_objects():
    objects = randn(3, 4, seed=2)
    coupled = OptimalTransport()(randn(40, 4), objects, 2.0, generator(0))
    counts = coupled.object.bincount(minlength=3)
    assert sorted(counts.tolist()) == [13, 13, 14]
    assert torch.equal(coupled.data, objects[coupled.object])
    more = {
        tuple(OptimalTransport()(randn(40, 4), objects, 2.0, generator(k)).object.bincount().tolist())
        for k in range(20)
    }
    assert len(more) == 3, "which object has one more is chance"


def test_optimal_transport_is_cheaper_than_a_thousand_random_couplings():
    noise, objects = randn(12, 4), randn(5, 4, seed=2)
    coupled = OptimalTransport()(noise, objects, 2.0, generator(0))
    cost = (noise - coupled.data).norm(dim=1).sum()
    others = [(noise - coupled.data[torch.randperm(12, generator=generator(k))]).norm(dim=1).sum() for k in range(1000)]
    assert cost < min(others)


@pytest.mark.parametrize("coupling", [OptimalTransport(), Padded()])
@pytest.mark.parametrize(("num", "objects"), [(7, 0), (3, 5), (5, 5), (1, 1)])
def test_couplings_of_no_object_and_of_more_objects_than_noises(coupling, num, objects):
    coupled = coupling(randn(num, 4), randn(objects, 4, seed=3), 2.0, generator(0))
    assert coupled.data.shape == (num, 4)
    assert coupled.data.isfinite().all()
    assert (coupled.object == -1).sum() == max(num - objects, 0)
    counts = coupled.object[coupled.object >= 0].bincount(minlength=objects)
    assert (counts <= 1).all()


def test_padding_gives_each_object_one_noise_and_the_rest_nothing():
    objects = randn(3, 4, seed=2)
    coupled = Padded()(randn(400, 4), objects, 2.0, generator(5))
    assert sorted(coupled.object[coupled.object >= 0].tolist()) == [0, 1, 2]
    placed = coupled.object >= 0
    assert torch.equal(coupled.data[placed], objects[coupled.object[placed]])
    centres = (coupled.data[~placed][:, :2] / 2 + 1) / 2
    assert centres.mean().item() == pytest.approx(0.5, abs=0.02)
    assert centres.std().item() == pytest.approx(1 / 6, abs=0.015)
