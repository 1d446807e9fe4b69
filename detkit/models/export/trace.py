"""From a program to what other runtimes read: torch's exported program, and ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from detkit.models.export.onnx_ops import translations
from detkit.models.export.program import Program
from detkit.ops.gathered import deform_conv_gathered, region_pooling_gathered
from detkit.ops.onnx import OPSET

INPUT = "images"
#: The last of a detector that finds them.
OUTPUTS = ("boxes", "scores", "labels", "landmarks")


def traced(program: Program, size: tuple[int, int], *, fixed: bool = False, gathered: bool = False) -> ExportedProgram:
    """``program`` as torch's own graph of operators.

    Args:
        size: (h, w) px of the images that it is traced with; where it is not ``fixed``, large enough for two cells on
            each side of every map, since a side of one cell would be taken for one that never changes.
        fixed: for one image of this size alone; else for any number of images, of any size.
        gathered: deformable convolutions in plain gathers, not as the op.
    """
    batch = 1 if fixed else 2
    images = torch.zeros(batch, 3, *size, dtype=torch.uint8)
    sides = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    if program.channels_last:
        images, sides = images.permute(0, 2, 3, 1).contiguous(), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    with torch.no_grad():
        graph = torch.export.export(program, (images,), dynamic_shapes=None if fixed else (sides,), strict=False)
        return graph.run_decompositions(_forms(gathered))


def _forms(gathered: bool) -> dict[Any, Callable[..., Any]]:
    forms: dict[Any, Callable[..., Any]] = {torch.ops.detkit.region_pooling.default: region_pooling_gathered}
    if gathered:
        forms[torch.ops.detkit.deform_conv.default] = deform_conv_gathered
    return forms


def write_onnx(graph: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """``graph`` as an ONNX file with ``metadata`` in it."""
    program = torch.onnx.export(
        graph, (), dynamo=True, opset_version=OPSET, custom_translation_table=translations(), optimize=False,
        input_names=[INPUT], output_names=list(OUTPUTS[: len(graph.graph_signature.user_outputs)]), verbose=False,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(str(path))
