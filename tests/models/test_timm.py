"""timm's models as backbones: their levels, layouts, sizes and options, and what is said of those that do not serve."""

import pytest
import torch

from detkit.config import ConfigError
from detkit.models import build_detector
from detkit.models.backbones import MobileNetV2, ResNet, Timm
from detkit.models.backbones.check import check_spec
from detkit.structures import Categories, FeatureSpec
from tests.models.builders import compose_model

pytest.importorskip("timm")

CATEGORIES = Categories(("a", "b", "c"), (1, 2, 3))
FOUR = (4.0, 8.0, 16.0, 32.0)

#: name, options, and the strides of what comes
SMALL = [
    ("test_resnet", {}, FOUR),
    ("dla34", {}, FOUR),
    ("mobilevitv2_050", {}, FOUR),
    ("sequencer2d_s", {"layers": [1, 1, 1, 1], "embed_dims": [24] * 4, "hidden_sizes": [8] * 4}, (7.0, 14.0)),
    ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 2, 1], "embed_dim": 24}, FOUR),
    ("mambaout_femto", {"depths": [1, 1, 1, 1]}, FOUR),
    ("maxvit_rmlp_pico_rw_256", {"img_size": [64, 64]}, FOUR),
    ("test_vit", {}, (16.0,)),
    ("vit_small_patch14_dinov2", {"depth": 2, "embed_dim": 32, "num_heads": 2}, (14.0,)),
]

_FOUR_STAGES = """
    resnet18 seresnext26t_32x4d res2net50_26w_4s resnest14d resnetv2_50 skresnet18 regnetx_002 resnext26ts dpn48b
    densenet121 vgg11 dla34 dla60 hrnet_w18_small efficientnet_b0 tf_efficientnetv2_b0 mobilenetv3_small_050
    mobilenetv4_conv_small ghostnet_100 mnasnet_small mixnet_s rexnet_100 tinynet_e lcnet_050 fbnetc_100 hardcorenas_a
    cspdarknet53 darknet53 nfnet_l0 xception41 repvgg_a0 ese_vovnet19b_dw hgnet_tiny convnext_atto edgenext_xx_small
    poolformer_s12 inception_next_atto starnet_s1 fastvit_t8 mobileone_s0 mobilevit_xxs mobilevitv2_050 efficientvit_b0
    nextvit_small pvt_v2_b0 twins_svt_small mvitv2_tiny davit_tiny focalnet_tiny_srf tiny_vit_5m_224
    swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 mambaout_femto maxvit_rmlp_pico_rw_256
    maxxvit_rmlp_nano_rw_256
"""

#: one of each family, with the strides of what comes
FAMILIES = {
    **dict.fromkeys(_FOUR_STAGES.split(), FOUR),
    "selecsls42": (*FOUR, 64.0),
    "efficientvit_m0": (16.0, 32.0, 64.0),
    "shvit_s1": (16.0, 32.0, 64.0),
    "vit_tiny_patch16_224": (16.0,),
    "deit_tiny_patch16_224": (16.0,),
    "samvit_base_patch16": (16.0,),
    "eva02_tiny_patch14_224": (14.0,),
    "xcit_nano_12_p8_224": (8.0,),
    "convmixer_768_32": (7.0,),
}

#: those that cannot serve at once, and what is said
REFUSED = {
    "inception_v3": r"'inception_v3' declares channels 192, .* at strides 4, .* 192x75x150, .*; its maps are 192x71x145, ",
    "legacy_xception": r"declares channels 128, .*; its maps are 128x\d+x\d+, ",
    "crossvit_tiny_240": r"declares channels 96, 192 at strides 12, 17, .*; its maps are 96x20x20, 192x14x14 ",
    "hiera_tiny_224": r"takes images of 224 x 224 px alone: .* set options\.img_size=\[height,width\] to it",
    "coatnet_nano_rw_224": r"takes images of 224 x 224 px alone",
    "mixer_s16_224": r"takes images of 224 x 224 px alone",
}


def assert_serves(backbone: Timm, strides: tuple[float, ...]) -> None:
    assert backbone.out_spec.strides == strides
    check_spec(backbone, backbone.out_spec, "it")
    backbone.eval()
    for size in ((160, 96), (200, 328)):
        with torch.no_grad():
            maps = backbone(torch.randn(2, 3, *size))
        assert [tuple(m.shape) for m in maps] == [
            (2, c, *(-(-side // int(s)) for side in size)) for c, s in zip(*backbone.out_spec, strict=True)
        ]
        assert all(m.is_contiguous() for m in maps)


@pytest.mark.parametrize(("name", "options", "strides"), SMALL, ids=[row[0] for row in SMALL])
def test_levels_layouts_and_sizes(name, options, strides):
    assert_serves(Timm(name=name, pretrained=False, options=options), strides)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_serves(name):
    backbone = Timm(name=name, pretrained=False)
    assert backbone.out_spec.strides == FAMILIES[name]
    check_spec(backbone, backbone.out_spec, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_those_that_do_not_serve_say_why(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        check_spec(backbone := Timm(name=name, pretrained=False), backbone.out_spec, name)


def test_padding_a_model_of_multiples_changes_no_map_of_a_multiple():
    torch.manual_seed(0)
    backbone = Timm(name="maxvit_rmlp_pico_rw_256", pretrained=False, options={"img_size": [64, 64]}).eval()
    pixels = torch.randn(1, 3, 128, 192)
    with torch.no_grad():
        for ours, theirs in zip(backbone(pixels), backbone.body(pixels), strict=True):
            assert torch.equal(ours, theirs)
        pixels[:, :, 100:] = 0
        for part, whole in zip(backbone(pixels[:, :, :100]), backbone.body(pixels), strict=True):
            assert torch.equal(part, whole[:, :, : part.shape[2]])


def test_a_map_of_another_layout_is_turned_and_not_read_across():
    torch.manual_seed(0)
    backbone = Timm(name="mambaout_femto", pretrained=False, options={"depths": [1, 1, 1, 1]}).eval()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(backbone(pixels)[0], backbone.body(pixels)[0].permute(0, 3, 1, 2))


def test_an_image_size_of_its_own_serves_images_of_that_size():
    small = {"img_size": [64, 96], "depth": 2, "embed_dim": 32, "num_heads": 2}
    backbone = Timm(name="beit_base_patch16_224", pretrained=False, options=small).eval()
    check_spec(backbone, backbone.out_spec, "beit", backbone.example_size)
    assert backbone(torch.zeros(1, 3, 64, 96))[0].shape == (1, 32, 4, 6)
    with pytest.raises(ValueError, match=r"takes images of 64 x 96 px alone \(options\.img_size\), not of 96 x 96 px"):
        backbone(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_resnet", {"drop_pathrate": 0.1}, "options: timm model 'test_resnet' has no argument 'drop_pathrate'; did "
         "you mean 'drop_path_rate'?"),
        ("regnetx_002", {"foo": 1}, "has no argument 'foo'; it takes cfg, output_stride, drop_rate"),
        ("test_vit", {"num_classes": 3}, "options: 'num_classes' of test_vit is set by detkit"),
        ("test_resnet", {"drop_path_rate": "high"}, "timm model 'test_resnet' cannot be made: unsupported operand"),
    ],
)  # fmt: skip
def test_options_that_the_model_does_not_take(name, options, message):
    with pytest.raises(ValueError, match=r"test_|regnet") as caught:
        Timm(name=name, pretrained=False, options=options)
    assert message in str(caught.value)


def test_options_reach_the_model():
    backbone = Timm(name="test_resnet", pretrained=False, options={"drop_path_rate": 0.25})
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == 0.25


@pytest.mark.parametrize(
    ("name", "near"), [("swin_tinny_patch4", "swin_tiny_patch4_window7_224"), ("dla_34", "dla34"), ("efficentnet_b0", "efficientnet_b0")]
)  # fmt: skip
def test_an_unknown_name_has_near_ones(name, near):
    with pytest.raises(ValueError, match=rf"timm has no model '{name}'; near: .*{near}"):
        Timm(name=name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (FeatureSpec((64, 128), (8.0, 16.0)), "declares channels 64, 128 at strides 8, 16, which of an image of 64 x 96 px is "
         "64x8x12, 128x4x6; its maps are 128x8x12, 256x4x6"),
        (FeatureSpec((128, 256), (4.0, 8.0)), "is 128x16x24, 256x8x12; its maps are 128x8x12, 256x4x6"),
        (FeatureSpec((128,), (8.0,)), "is 128x8x12; its maps are 128x8x12, 256x4x6"),
    ],
)  # fmt: skip
def test_what_a_backbone_declares_is_compared_when_a_detector_is_built(monkeypatch, spec, words):
    init = ResNet.__init__

    def lie(self, **options):
        init(self, **options)
        self.out_spec = spec

    monkeypatch.setattr(ResNet, "__init__", lie)
    node = compose_model("retinanet", ["model/backbone=resnet18_narrow"])
    node["backbone"] = {"_target_": "ResNet", "depth": 18, "weights": None, "norm": "bn", "levels": [3, 4]}
    with pytest.raises(ConfigError) as caught:
        build_detector(node, CATEGORIES)
    assert words in str(caught.value)
    assert str(caught.value).startswith("model.backbone: ResNet ")


def test_a_backbone_that_fails_is_named(monkeypatch):
    def fail(self, pixels):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(MobileNetV2, "forward", fail)
    backbone = MobileNetV2(weights=None, norm="bn")
    with pytest.raises(ValueError, match=r"^mine fails on an image of 64 x 96 px: RuntimeError: no kernel$"):
        check_spec(backbone, backbone.out_spec, "mine")


def test_the_comparison_leaves_no_trace():
    backbone = MobileNetV2(weights=None, norm="bn", frozen_stages=1).train()
    backbone.stage1.eval()
    modes = [m.training for m in backbone.modules()]
    state = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.stage5.register_forward_hook(lambda *_: torch.rand(1) and None)  # a layer that draws
    random = torch.get_rng_state()
    check_spec(backbone, backbone.out_spec, "mine")
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in backbone.modules()]
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    assert all(p.grad is None for p in backbone.parameters())
