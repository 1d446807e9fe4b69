"""Export form of boxes that flow: its steps one after another, from noise that is part of the file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.matching.fixed import Marked, select_of_classes
from detkit.models.export.form import View, found_by
from detkit.models.export.pools import grids_of
from detkit.models.flow.decoder import Guess
from detkit.models.heads.flow import FlowHead


@found_by.register
def _(head: FlowHead, features: Sequence[Tensor], view: View) -> Marked:
    decoder, batch = head.decoder, features[0].shape[0]
    one = features[0].new_ones((), dtype=torch.float32)
    h, w = (one * side for side in view.size)
    unit = torch.stack([w, h, w, h]).expand(batch, 1, 4)

    def read(boxes: Tensor) -> Tensor:
        return grids_of(decoder.pool, features[: decoder.pool.num_levels], boxes, view.size)

    def denoise(boxes: Tensor, t: Tensor) -> Guess:
        return decoder.guesses(read, boxes, t, unit)[-1]

    guess = head.found(denoise, unit)
    scores = head.cls_loss.scores(guess.logits.flatten(0, 1)).view(batch, guess.boxes.shape[1], -1)
    return select_of_classes(guess.boxes[:, :, None], scores, view.size, head.selector, view.valid_range)
