"""Backbones against torchvision's networks, weights and their errors, and what freezing means."""

import os

import pytest
import torch
import torchvision
from torch import nn

from detkit.config import ConfigError, build
from detkit.models.backbones import MobileNetV2, MobileNetV3, ResNet, Timm

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def stages_of(network, pixels):
    x = network.maxpool(network.relu(network.bn1(network.conv1(pixels))))
    maps = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnet_takes_torchvisions_state_dict_and_gives_its_features(depth, tmp_path):
    torch.manual_seed(depth)
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = ResNet(depth=depth, weights=str(tmp_path / "resnet.pth"), norm="frozen_bn", frozen_stages=0)
    with torch.no_grad():
        for mine, other in zip(ours(PIXELS), stages_of(theirs, PIXELS), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_levels_are_a_choice():
    backbone = ResNet(depth=18, weights=None, norm="bn", levels=(3, 4))
    assert backbone.out_spec == ((128, 256), (8.0, 16.0))
    assert [m.shape[1] for m in backbone(PIXELS)] == [128, 256]
    with pytest.raises(ValueError, match=r"levels must be ascending and different, out of 2, 3, 4, 5; not \[4, 3\]"):
        ResNet(depth=18, weights=None, levels=(4, 3))


@pytest.mark.skipif("TORCH_HOME" not in os.environ, reason="TORCH_HOME with mobilenet_v2's ImageNet weights is not set")
def test_mobilenet_loads_its_imagenet_weights():
    theirs = torchvision.models.mobilenet_v2(weights="IMAGENET1K_V1").eval()
    ours = MobileNetV2(weights="imagenet")
    with torch.no_grad():
        x, expected = PIXELS, []
        for i, layer in enumerate(theirs.features):
            x = layer(x)
            if i in (3, 6, 13, 18):
                expected.append(x)
        for mine, other in zip(ours(PIXELS), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_mobilenetv3_takes_torchvisions_state_dict_and_gives_any_of_its_layers(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v3_large(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.01, 0.1)  # so small that the epsilon of 1e-3 matters
            module.running_mean.normal_(0, 0.1)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet.pth")
    for layers in ((3, 6, 12, 16), (13, 16), (0, 4)):
        ours = MobileNetV3(weights=str(tmp_path / "mobilenet.pth"), layers=layers, frozen_stages=3)
        with torch.no_grad():
            x, expected = PIXELS, []
            for i, layer in enumerate(theirs.features):
                x = layer(x)
                if i in layers:
                    expected.append(x)
            for mine, other in zip(ours(PIXELS), expected, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
        assert ours.out_spec.channels == tuple(m.shape[1] for m in expected)
        assert not any(p.requires_grad for stage in ours.stages[:3] for p in stage.parameters())
    with pytest.raises(ValueError, match=r"layers must be ascending and different, out of 0 to 16; not \[3, 17\]"):
        MobileNetV3(weights=None, layers=(3, 17))


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConfigError) as caught:
        build({"_target_": "ResNet", "depth": 50})
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet50" in message
    assert str(tmp_path / "hub" / "checkpoints") in message
    assert "weights=null" in message


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(
        ValueError, match=r"weights: no file 'nowhere\.pth'; allowed: 'imagenet', the path of a state dict"
    ):
        MobileNetV2(weights="nowhere.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"broken\.pth is not a readable state dict"):
        MobileNetV2(weights=str(broken))
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match=r"numbers\.pth is not a state dict"):
        MobileNetV2(weights=str(tmp_path / "numbers.pth"))
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"do not fit ResNet: 80 missing \(layer1\.2\.bn1\.bias, .*0 of another shape"):
        ResNet(depth=34, weights=str(tmp_path / "resnet18.pth"), norm="frozen_bn")


@pytest.mark.parametrize("value", [float("nan"), 1e300])  # the second is infinite in float32
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    file = tmp_path / "bad.pth"
    state = torchvision.models.resnet18(weights=None).state_dict()
    state["fc.bias"][0] = float("nan")  # is not taken over
    torch.save(state, file)
    assert ResNet(depth=18, weights=str(file), norm="frozen_bn")
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].double()
    state["layer1.0.conv1.weight"][0, 0, 0, :2] = value
    torch.save(state, file)
    with pytest.raises(
        ValueError, match=r"bad\.pth' are of no use: layer1\.0\.conv1\.weight has 2 of 36864 values not"
    ):
        ResNet(depth=18, weights=str(file), norm="frozen_bn")


@pytest.mark.parametrize("frozen", [0, 2, 5])
def test_frozen_stages_neither_learn_nor_count(frozen):
    backbone = ResNet(depth=18, weights=None, norm="bn", frozen_stages=frozen).train()
    stages = [[backbone.conv1, backbone.bn1], *([s] for s in backbone.stages)]
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone(PIXELS)
    after = backbone.state_dict()
    for i, stage in enumerate(stages):
        parameters = [p for module in stage for p in module.parameters()]
        assert all(p.requires_grad == (i >= frozen) for p in parameters)
    moved = {k.split(".")[0] for k in before if "running" in k and not torch.equal(before[k], after[k])}
    names = ["bn1", "layer1", "layer2", "layer3", "layer4"]
    assert moved == set(names[frozen:])


@pytest.mark.parametrize(
    ("norm", "kind"), [("gn", nn.GroupNorm), ("bn", nn.BatchNorm2d), ("sync_bn", nn.SyncBatchNorm)]
)
def test_norm_is_a_choice(norm, kind):
    backbone = ResNet(depth=18, weights=None, norm=norm, frozen_stages=0, width=24)
    assert sum(isinstance(m, kind) for m in backbone.modules()) == 20
    assert backbone.out_spec.channels == (24, 48, 96, 192)


def test_timm_brings_its_own_pixel_statistics():
    backbone = Timm(name="tf_efficientnet_lite0", pretrained=False)
    assert backbone.pixel_stats.mean == (127.5, 127.5, 127.5)
    assert backbone.out_spec.strides == (4.0, 8.0, 16.0, 32.0)


def test_timm_takes_a_file_of_its_classifier(tmp_path):
    timm = pytest.importorskip("timm")
    classifier = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    torch.save(classifier.state_dict(), tmp_path / "lite0.pth")
    backbone = Timm(name="tf_efficientnet_lite0", checkpoint=str(tmp_path / "lite0.pth")).eval()
    stem = classifier.bn1(classifier.conv_stem(PIXELS))
    with torch.no_grad():
        expected = classifier.blocks[1](classifier.blocks[0](stem))
        torch.testing.assert_close(backbone(PIXELS)[0], expected, rtol=1e-4, atol=1e-4)


def test_timm_errors(tmp_path):
    with pytest.raises(ValueError, match=r"timm has no model 'resnet5000'; near: .*resnet"):
        Timm(name="resnet5000", pretrained=False)
    with pytest.raises(ValueError, match=r"checkpoint: no file 'nowhere\.pth'"):
        Timm(name="resnet18", checkpoint="nowhere.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"checkpoint: .*other\.pth does not fit timm's resnet18: 120 missing"):
        Timm(name="resnet18", checkpoint=str(tmp_path / "other.pth"))
    state = torchvision.models.resnet18(weights=None).state_dict()
    state["bn1.running_var"][3] = float("inf")
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth is of no use: bn1\.running_var has 1 of 64 values not finite"):
        Timm(name="resnet18", checkpoint=str(tmp_path / "bad.pth"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ResNet, {"depth": 18, "norm": "bn"}),
        (ResNet, {"depth": 50, "norm": "bn", "width": 16, "levels": (4, 5)}),
        (ResNet, {"depth": 50, "norm": "bn", "width": 16, "stage_conv": ("conv", "conv", "conv", "deform")}),
        (MobileNetV2, {"norm": "bn"}),
        (MobileNetV2, {"norm": "frozen_bn", "last_conv": False}),
    ],
)
@torch.no_grad()
def test_a_dilated_last_stage_holds_the_values_of_the_strided_one(kind, options):
    """At every other cell, with the same weights under the same names: ImageNet's keep their meaning."""
    torch.manual_seed(0)
    strided = kind(weights=None, **options).eval()
    dilated = kind(weights=None, dilate_last=True, **options).eval()
    dilated.load_state_dict(strided.state_dict())
    assert dilated.out_spec.strides[-2:] == (16.0, 16.0)
    assert dilated.out_spec.channels == strided.out_spec.channels
    *before, dense = dilated(PIXELS)
    *expected, coarse = strided(PIXELS)
    torch.testing.assert_close(dense[:, :, ::2, ::2], coarse, rtol=1e-4, atol=1e-5 * float(coarse.abs().max()))
    assert dense[:, :, 1::2].any()
    assert all(torch.equal(a, b) for a, b in zip(before, expected, strict=True))


def test_a_stage_that_is_not_read_cannot_be_dilated():
    with pytest.raises(ValueError, match=r"dilate_last changes the stride of C5, which levels=\[3, 4\] leave out"):
        ResNet(weights=None, levels=(3, 4), dilate_last=True)
