"""Exported ops give in onnxruntime what they give here."""

import pytest
import torch
from torch import nn

from detkit.ops import deform_conv, deform_roi_pool, multi_level_roi_align, ps_roi_align
from detkit.ops.onnx import OPSET, onnx_translations

pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


class Op(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def exported(function, inputs, path):
    torch.onnx.export(
        Op(function), inputs, path, dynamo=True, opset_version=OPSET, custom_translation_table=onnx_translations(),
        verbose=False, optimize=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)})[0]


@pytest.mark.parametrize(("groups", "offset_groups", "modulated"), [(1, 1, True), (2, 2, True), (2, 1, False)])
def test_deformable_convolution(groups, offset_groups, modulated, tmp_path):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 4, 7, 9, generator=g), torch.randn(6, 4 // groups, 3, 2, generator=g)
    options = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)}
    offset = torch.randn(2, 2 * offset_groups * 6, 7, 5, generator=g)
    inputs = (x, offset, weight, torch.randn(6, generator=g))
    if modulated:
        inputs = (*inputs, torch.rand(2, offset_groups * 6, 7, 5, generator=g))
    _, out = exported(lambda *t: deform_conv(*t, **options), inputs, str(tmp_path / "op.onnx"))
    torch.testing.assert_close(torch.from_numpy(out), deform_conv(*inputs, **options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("sampling", "aligned"), [(2, True), (0, False)])
def test_multi_level_roi_align(sampling, aligned, tmp_path):
    g = torch.Generator().manual_seed(0)
    maps = (torch.randn(2, 3, 16, 20, generator=g), torch.randn(2, 3, 8, 10, generator=g))
    corner = 60 * torch.rand(5, 2, generator=g)
    boxes = torch.cat([corner, corner + 40 * torch.rand(5, 2, generator=g) + 4], dim=1)
    inputs = (*maps, boxes, torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 1, 0, 1, 1]))
    options = {"output_size": (3, 4), "scales": (1 / 8, 1 / 16), "sampling_ratio": sampling, "aligned": aligned}
    _, out = exported(lambda a, b, *t: multi_level_roi_align([a, b], *t, **options), inputs, str(tmp_path / "op.onnx"))
    expected = multi_level_roi_align(maps, *inputs[2:], **options)
    torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-4, atol=1e-4)


def test_position_sensitive_roi_align(tmp_path):
    g = torch.Generator().manual_seed(0)
    features, corner = torch.randn(2, 12, 16, 20, generator=g), 60 * torch.rand(5, 2, generator=g)
    boxes = torch.cat([corner, corner + 40 * torch.rand(5, 2, generator=g) + 4], dim=1)
    inputs = (features, boxes, torch.tensor([0, 1, 1, 0, 1]))
    options = {"output_size": (3, 2), "scale": 1 / 8, "sampling_ratio": 2}
    _, out = exported(lambda *t: ps_roi_align(*t, **options), inputs, str(tmp_path / "op.onnx"))
    torch.testing.assert_close(torch.from_numpy(out), ps_roi_align(*inputs, **options), rtol=1e-4, atol=1e-4)


def test_what_onnx_cannot_say_is_refused(tmp_path):
    maps, boxes = torch.zeros(1, 3, 8, 8), torch.tensor([[0.0, 0.0, 30.0, 30.0]])
    index = torch.zeros(1, dtype=torch.int64)
    options = {"output_size": (2, 2), "scales": (1 / 8,)}
    refused = {
        "no op for deformable": lambda m, b: deform_roi_pool([m], b, index, index, torch.zeros(1, 2, 2, 2), **options),
        "image_sizes=None": lambda m, b: multi_level_roi_align([m], b, index, index, image_sizes=[(64, 64)], **options),
    }
    for message, function in refused.items():
        with pytest.raises(Exception, match="ONNX") as caught:
            exported(function, (maps, boxes), str(tmp_path / "op.onnx"))
        chain, error = [], caught.value
        while error is not None:
            chain.append(str(error))
            error = error.__cause__
        assert any(message in text for text in chain)
