"""The page of ``tools/labels.py``: numbers, and for each finding the label as it is beside the one proposed."""

from __future__ import annotations

from collections.abc import Sequence

from detkit.app.labels.found import Finding, LabelReport
from detkit.app.pages.crops import CANDIDATE, DETECTION, OBJECT, Corners, Shot, album, corners, place_of
from detkit.app.pages.html import advice, page, section, table, tiles
from detkit.data.datasets.base import DetectionDataset
from detkit.evaluation.label_errors import Kind

_WORDS = {
    Kind.MISSING: ("Objects without a box", "A detection where nothing is labelled."),
    Kind.SPURIOUS: ("Boxes without an object", "No candidate of the detector, of any class, is where the label is."),
    Kind.MISPLACED: ("Boxes badly placed", "The class is agreed upon, the place is not."),
    Kind.WRONG_CLASS: ("Wrong classes", "A detection of another class where the label is, and little for the label's."),
    Kind.DUPLICATE: ("Objects with two boxes", "Two labels of one class, and one detection for both."),
}

_ROLES = {"label": OBJECT, "as it should be": DETECTION, "the label that stays": CANDIDATE}

_NOTE = (
    "Certainty: what the detector's scores and boxes say against the label, over all looks at the image; less where it "
    "sees nothing in the place of many labels of that class, and where its loss would fall but little with another "
    "class. Loss: by how much it would change. ObjectLab: the published score of the same, low where it is suspicious."
)

#: Images in the table of the worst.
_NUM_IMAGES = 20


def labels_page(report: LabelReport, dataset: DetectionDataset, source: str, table_name: str, num_pictures: int) -> str:
    """The HTML page; ``num_pictures`` of each kind, of ``dataset``. ``table_name``: the file that a person edits."""
    numbers = {"images": str(len(report.images)), "findings": str(len(report.findings))}
    if report.num_known:
        numbers["images left out, trained on"] = str(report.num_known)
    numbers |= {kind.value: str(count) for kind, count in report.counts.items()}
    steps = [
        ("Look.", "Each row has the label as it is at the left, and at the right what is proposed."),
        ("Accept.", f"Write yes into the column accept of {table_name}; class and box of the proposal may be changed."),
        ("Apply.", "The last line that the tool printed writes the file with the accepted rows; yours stays as it is."),
    ]
    parts = [
        tiles(numbers),
        section("What to do", advice(steps), note=_NOTE),
        section(f"Images, the worst {_NUM_IMAGES}", table(["image", "score", "ObjectLab", "findings"], _rows(report))),
        *_albums(report, dataset, num_pictures),
    ]
    return page("Labels that are likely wrong", source, parts)


def _rows(report: LabelReport) -> list[list[str]]:
    ranked = sorted(report.images, key=lambda image: -image.score)[:_NUM_IMAGES]
    return [
        [
            place_of(i.truth.file, i.truth.image_id, None),
            f"{i.score:.2f}",
            f"{i.baseline.image:.2f}",
            str(len(i.findings)),
        ]
        for i in ranked
    ]


def _albums(report: LabelReport, dataset: DetectionDataset, count: int) -> list[str]:
    """A section of pairs of pictures for each kind that occurs, the surest first."""
    rows = {truth.image_id: i for i, truth in enumerate(dataset.truths)}
    names = report.categories.names
    albums = []
    for kind, (heading, note) in _WORDS.items():
        mine = [f for f in report.findings if f.suspicion.kind is kind]
        if not mine or not count:
            continue
        shots = [shot for f in mine[:count] for shot in _shots(f, rows[f.truth.image_id], names)]
        albums.append(section(f"{heading} ({len(mine)})", album(shots, dataset, _ROLES), note=note))
    return albums


def _shots(finding: Finding, row: int, names: Sequence[str]) -> tuple[Shot, Shot]:
    """As it is, and as it should be: the same part of the image."""
    truth, s = finding.truth, finding.suspicion
    as_is: list[tuple[Corners, int, str]] = []
    if s.index is not None:
        as_is.append((corners(truth.boxes[s.index]), OBJECT, names[int(truth.labels[s.index])]))
    proposed: list[tuple[Corners, int, str]] = []
    if s.box is not None and s.label is not None:
        proposed.append((s.box, DETECTION, names[s.label]))
    if s.other is not None:
        proposed.append((corners(truth.boxes[s.other]), CANDIDATE, names[int(truth.labels[s.other])]))
    annotation = None if s.index is None else int(truth.annotation_ids[s.index])
    where = place_of(truth.file, truth.image_id, annotation)
    frame = [box for box, _, _ in (*as_is, *proposed)]
    said = f"certainty {finding.rank:.2f}"
    if finding.loss_gain is not None:
        said += f", loss {-finding.loss_gain:+.2f}"
    if finding.objectlab is not None:
        said += f", ObjectLab {finding.objectlab:.2f}"
    return (
        Shot(row, as_is, "as it is" if as_is else "as it is: no box", where, finding.rank, frame),
        Shot(row, proposed, "proposed" if proposed else "proposed: no box", said, finding.rank, frame),
    )
