"""What a why-missed report must add up to, counted by plain loops over annotations and detections as files hold them.

It shares no line with detkit: not its overlaps, its matching, nor its arrays.
"""

from collections import Counter


def overlap(a, b):
    """Width, height and area of what two x y w h boxes share."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return w * h if w > 0 and h > 0 else 0.0


def iou(a, b):
    both = overlap(a, b)
    return both / (a[2] * a[3] + b[2] * b[3] - both) if both else 0.0


def count(annotations, detections, threshold):
    """Objects, found ones, ids of the missed ones, and the false alarms of each kind at a least score.

    Args:
        annotations: rows of a COCO file.
        detections: rows of a COCO results file.
        threshold: all detections are matched, the best first; those that score less are then not shown.
    """
    objects, found, missed, alarms = 0, 0, set(), Counter()
    for image in sorted({row["image_id"] for row in [*annotations, *detections]}):
        wanted = [a for a in annotations if a["image_id"] == image and not a["iscrowd"]]
        crowds = [a for a in annotations if a["image_id"] == image and a["iscrowd"]]
        ranked = sorted((d for d in detections if d["image_id"] == image), key=lambda d: -d["score"])
        finder, wrong = {}, []
        for detection in ranked:
            best, best_iou = None, 0.0
            for one in wanted:
                if one["category_id"] == detection["category_id"] and one["id"] not in finder:
                    near = iou(one["bbox"], detection["bbox"])
                    if near >= 0.5 and near > best_iou:
                        best, best_iou = one, near
            if best is not None:
                finder[best["id"]] = detection
            elif not any(inside(detection, crowd) for crowd in crowds):
                wrong.append(detection)
        objects += len(wanted)
        for one in wanted:
            if one["id"] in finder and finder[one["id"]]["score"] >= threshold:
                found += 1
            else:
                missed.add(one["id"])
        for detection in wrong:
            if detection["score"] >= threshold:
                alarms[kind(detection, wanted, finder)] += 1
    return objects, found, missed, dict(alarms)


def inside(detection, crowd):
    box = detection["bbox"]
    same = detection["category_id"] == crowd["category_id"]
    return same and box[2] * box[3] > 0 and overlap(box, crowd["bbox"]) / (box[2] * box[3]) >= 0.5


def kind(detection, wanted, finder):
    """TIDE's kinds (Bolya et al., section 3.1), the first that holds."""
    own = [iou(o["bbox"], detection["bbox"]) for o in wanted if o["category_id"] == detection["category_id"]]
    other = [iou(o["bbox"], detection["bbox"]) for o in wanted if o["category_id"] != detection["category_id"]]
    taken = [
        iou(o["bbox"], detection["bbox"])
        for o in wanted
        if o["category_id"] == detection["category_id"] and o["id"] in finder
    ]
    if 0.1 <= max(own, default=0) <= 0.5:
        return "badly placed"
    if max(other, default=0) >= 0.5:
        return "wrong class"
    if max(taken, default=0) >= 0.5:
        return "duplicate"
    if max([*own, *other], default=0) <= 0.1:
        return "background"
    return "wrong class and badly placed"
