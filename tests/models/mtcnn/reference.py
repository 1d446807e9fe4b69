"""MTCNN's cascade in plain loops, step by step as the published implementation goes, to compare with."""

import math

import torch
import torch.nn.functional as F


def suppress(rows, threshold, smaller=False):
    """Greedy NMS over rows x1 y1 x2 y2 score ...; by the union, or by the smaller area with sides 1 px longer."""
    extra, kept = (1 if smaller else 0), []
    for row in sorted(rows, key=lambda r: -r[4]):
        for other in kept:
            w = max(0.0, min(row[2], other[2]) - max(row[0], other[0]) + extra)
            h = max(0.0, min(row[3], other[3]) - max(row[1], other[1]) + extra)
            areas = [(r[2] - r[0] + extra) * (r[3] - r[1] + extra) for r in (row, other)]
            if w * h / (min(areas) if smaller else sum(areas) - w * h) > threshold:
                break
        else:
            kept.append(row)
    return kept


def square(row):
    x1, y1, x2, y2 = row[:4]
    side = max(x2 - x1, y2 - y1)
    x, y = x1 + (x2 - x1) / 2 - side / 2, y1 + (y2 - y1) / 2 - side / 2
    return [x, y, x + side, y + side]


def move(row, deltas, extra):
    w, h = row[2] - row[0] + extra, row[3] - row[1] + extra
    return [c + d * side for c, d, side in zip(row[:4], deltas, (w, h, w, h), strict=True)]


def crop(pixels, box, side):
    h, w = pixels.shape[1:]
    x1, y1, x2, y2 = (math.trunc(c) for c in box)
    x1, y1, x2, y2 = max(x1, 1), max(y1, 1), min(x2, w), min(y2, h)
    if x2 <= x1 - 1 or y2 <= y1 - 1:
        return None
    return (F.interpolate(pixels[None, :, y1 - 1 : y2, x1 - 1 : x2], size=(side, side), mode="area") - 127.5) / 128


def detect(nets, pixels, min_size=20.0, factor=0.709, thresholds=(0.6, 0.7, 0.7)):
    """Rows x1 y1 x2 y2 score label and the landmarks (L, 2) of each, best first."""
    h, w = pixels.shape[1:]
    scale, candidates = 12 / min_size, []
    while min(h, w) * 12 / min_size * (scale / (12 / min_size)) >= 12:
        image = F.interpolate(pixels[None], size=(int(h * scale + 1), int(w * scale + 1)), mode="area")
        logits, deltas, _ = nets[0]((image - 127.5) / 128)
        score = logits.softmax(1)[0, 1]
        rows = []
        for i in range(score.shape[0]):
            for j in range(score.shape[1]):
                if score[i, j] >= thresholds[0]:
                    # torch's float32 division, as published: 18 / 0.6 is 29 there
                    box = (torch.tensor([2.0 * j + 1, 2 * i + 1, 2 * j + 12, 2 * i + 12]) / scale).floor().tolist()
                    rows.append([*box, score[i, j].item(), *deltas[0, :, i, j].tolist()])
        candidates += suppress(rows, 0.5)
        scale *= factor
    boxes = [square(move(r, r[5:9], 0)) for r in suppress(candidates, 0.7)]
    rows = []
    for box in boxes:
        if (image := crop(pixels, box, 24)) is not None:
            logits, deltas, _ = nets[1](image)
            if (score := logits.softmax(1)[0, 1].item()) > thresholds[1]:
                rows.append([*box, score, *deltas[0].tolist()])
    boxes = [square(move(r, r[5:9], 1)) for r in suppress(rows, 0.7)]
    rows = []
    for box in boxes:
        if (image := crop(pixels, box, 48)) is None:
            continue
        logits, deltas, points = nets[2](image)
        for label, score in enumerate(logits.softmax(1)[0, 1:].tolist()):
            if score > thresholds[2]:
                sides = box[2] - box[0] + 1, box[3] - box[1] + 1
                x, y = points[0].view(2, -1).tolist()
                landmarks = [(box[0] + sides[0] * a - 1, box[1] + sides[1] * b - 1) for a, b in zip(x, y, strict=True)]
                rows.append([*move(box, deltas[0].tolist(), 1), score, label, landmarks])
    kept = [
        r for k in sorted({r[5] for r in rows}) for r in suppress([r for r in rows if r[5] == k], 0.7, smaller=True)
    ]
    return sorted(kept, key=lambda r: -r[4])
