"""SE and CBAM by their equations, their start as the identity, and where they are put."""

import pytest
import torch

from detkit.config import ConfigError, build
from detkit.models.backbones import ResNet
from detkit.models.layers import CBAM, SE
from tests.models.builders import compose_model


@pytest.mark.parametrize("kind", [SE, CBAM])
def test_it_starts_as_the_identity_and_learns(kind):
    layer = kind(channels=32)
    x = torch.randn(2, 32, 5, 7)
    assert torch.equal(layer(x), x)
    (layer(x) * torch.randn_like(x)).sum().backward()
    moved = [name for name, p in layer.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved, "its last layers have a gradient from the first step"


def test_se_is_its_equations():
    layer = SE(channels=4, reduction=2, identity=False)
    x = torch.randn(2, 4, 3, 3)
    first, _, second = layer.mlp
    z = x.mean((2, 3))
    s = torch.sigmoid((z @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias)
    torch.testing.assert_close(layer(x), torch.einsum("bchw,bc->bchw", x, s))


def test_cbam_is_its_equations():
    layer = CBAM(channels=4, reduction=2, kernel=3, identity=False)
    x = torch.randn(2, 4, 5, 6)
    channel = torch.sigmoid(layer.mlp(x.flatten(2).mean(2)) + layer.mlp(x.flatten(2).max(2).values))
    y = x * channel[:, :, None, None]
    place = torch.sigmoid(layer.spatial(torch.stack([y.mean(1), y.max(1).values], 1)))
    torch.testing.assert_close(layer(x), y * place)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="reduction must lie between 1 and the 8 channels, not 16"):
        SE(channels=8)
    with pytest.raises(ValueError, match="kernel must be odd, not 4"):
        CBAM(channels=16, kernel=4)


@pytest.mark.parametrize(("frozen", "levels"), [(5, (2, 3, 4, 5)), (4, (2, 3, 4)), (3, (2, 3))])
def test_attention_is_not_asked_for_where_no_block_that_is_read_trains(frozen, levels):
    attention = {"_target_": "SE", "_partial_": True}
    node = {"_target_": "ResNet", "depth": 18, "weights": None, "norm": "bn", "width": 16, "attention": attention}
    with pytest.raises(ConfigError, match=rf"frozen_stages={frozen} with levels=.* leaves none"):
        build({**node, "frozen_stages": frozen, "levels": levels})
    backbone = build({**node, "frozen_stages": frozen - 1, "levels": levels})
    assert [name for name, module in backbone.named_modules() if isinstance(module, SE)], "one stage is left"


def test_a_backbone_with_attention_starts_as_the_one_without(tmp_path):
    plain = ResNet(depth=18, weights=None, norm="bn", frozen_stages=2, width=16)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    node = {"_target_": "ResNet", "depth": 18, "norm": "bn", "frozen_stages": 2, "width": 16}
    node |= {"weights": str(tmp_path / "plain.pt"), "attention": {"_target_": "SE", "_partial_": True}}
    gated = build(node)
    x = torch.randn(1, 3, 64, 64)
    plain.eval()
    gated.eval()
    for a, b in zip(plain(x), gated(x), strict=True):
        assert torch.equal(a, b)
    gates = [name for name, module in gated.named_modules() if isinstance(module, SE)]
    assert len(gates) == 6, "two blocks in each of the three stages that train"
    assert not any(name.startswith("layer1") for name in gates)


@pytest.mark.parametrize("kind", ["SE", "CBAM"])
def test_it_is_put_into_a_neck_on_the_command_line(kind):
    cfg = compose_model("faster_rcnn_fpn", [f"+attention@model.neck.attention={kind}"])
    from detkit.structures import FeatureSpec

    neck = build(cfg.neck, in_spec=FeatureSpec((8, 16), (8.0, 16.0)))
    assert [type(gate).__name__ for gate in neck.attention] == [kind] * 3
