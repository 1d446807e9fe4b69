"""``tools/add_class.py``: prototypes from a few examples become weights, and the copy knows the classes."""

import json
import shutil

import numpy as np
import pytest
import torch

import detkit
from detkit.app.add_class import tool as add_class
from detkit.app.add_class.found import grown, look_at, new_categories
from detkit.app.library import Prediction
from detkit.app.use import evaluate
from detkit.config.validate import plain
from detkit.data import ShapesDataset
from detkit.engine import load_checkpoint
from detkit.engine.state.checkpoint import Checkpoint, load_weights
from detkit.models import build_detector
from detkit.models.cosine_regions import CosineRegions, prototype
from detkit.structures import Batch, Categories
from tests.app.tools import call, train_briefly
from tests.models.builders import build_model, compose_model, images, small, target

MANY = ("data.train.vocabulary=many", "data.train.num_new=4", "data.val.vocabulary=many", "data.val.num_new=4")
COSINE = ("loss@model.head.roi.cls_loss=NormalizedSoftmax", *MANY)


def split(which, kept):
    return f"data.train.classes={which}", f"data.val.classes={which}", f"data.root={kept}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A cosine head of 236 classes that has seen one step."""
    folder = tmp_path_factory.mktemp("run")
    return train_briefly(folder, *COSINE, *split("known", folder / "shapes"))


@pytest.fixture(scope="module")
def examples(checkpoint):
    """The file of 24 pictures of the four classes that the training left out."""
    new = ShapesDataset(
        root=str(checkpoint.parent / "new"), num_train=24, num_val=4, image_size=64, vocabulary="many", zipf=0.0,
        num_new=4, classes="new",
    )  # fmt: skip
    return new.folder / "train.json"


def coco(file, folder=None):
    """The overrides that make ``file`` the data."""
    own = [f"data.train.annotations={file}", f"data.train.images={folder or file.parent / 'images'}"]
    return ["data=coco", f"data.root={file.parent}", *own, "data.val=null", "data.loader.val.num_workers=0"]


def test_the_copy_knows_the_classes_and_keeps_the_old_weights(checkpoint, examples, tmp_path, monkeypatch, capsys):
    said = call(
        add_class.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", "num_examples=3",
        f"output={tmp_path / 'out'}", *coco(examples),
    )  # fmt: skip
    assert "236 classes have become 240" in said
    assert f"next: python tools/predict.py checkpoint={tmp_path / 'out' / 'last.pt'}" in said
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "out" / "last.pt")
    assert len(before.categories) == 236, "the given file stays"
    assert after.categories.ids == tuple(range(1, 241)), "in the order in which a data set of all of them has them"
    assert (after.training, after.average, after.calibration) == (None, None, None)
    old = [after.categories.names.index(name) for name in before.categories.names]
    name = "head.roi.network.cls_score.weight"
    assert torch.equal(after.weights[name][old], before.weights[name])
    boxes = "head.roi.network.bbox_pred.weight"
    assert torch.equal(after.weights[boxes].unflatten(0, (240, 4))[old].flatten(0, 1), before.weights[boxes])
    others = [key for key in before.weights if key not in (name, boxes, "head.roi.network.bbox_pred.bias")]
    assert all(torch.equal(after.weights[key], before.weights[key]) for key in others)
    rows = json.loads((tmp_path / "out" / "added.json").read_text())
    assert [row["num_examples"] for row in rows] == [3, 3, 3, 3]
    assert {row["category_id"] for row in rows} == set(after.categories.ids) - set(before.categories.ids)
    assert all(row["nearest"] in before.categories.names for row in rows)
    found = detkit.load(tmp_path / "out" / "last.pt", device="cpu").predict(np.zeros((64, 64, 3), np.uint8))
    assert isinstance(found, Prediction)
    assert len(found.class_names) == 240

    whole = checkpoint.parent / "shapes"
    said = call(
        evaluate.main, monkeypatch, capsys, f"checkpoint={tmp_path / 'out' / 'last.pt'}", "device=cpu",
        "data.train.classes=all", "data.val.classes=all", f"output={tmp_path / 'e'}",
        "data=shapes_many", f"data.root={whole}", "data.train.num_train=2", "data.train.num_val=2",
        "data.train.image_size=64", "data.train.num_new=4", "data.loader.val.num_workers=0",
    )  # fmt: skip
    assert (tmp_path / "e" / "detections.json").is_file(), said


@pytest.fixture(scope="module")
def small_detector():
    torch.manual_seed(0)
    made = ["loss@model.head.roi.cls_loss=CosFace"]
    return build_model("faster_rcnn_fpn", Categories(("a", "b"), (1, 2)), [*small("faster_rcnn_fpn"), *made]).eval()


def test_features_are_those_of_each_box_in_its_own_image(small_detector):
    regions = CosineRegions.of(small_detector)
    pixels = images((64, 64), (64, 64))
    pixels.pixels.copy_(torch.randint(0, 256, pixels.pixels.shape, generator=torch.Generator().manual_seed(0)))
    boxes = [torch.tensor([[4.0, 4, 30, 40], [10, 10, 60, 60]]), torch.tensor([[20.0, 8, 50, 30]])]
    first, second = regions.features(pixels, boxes)
    assert (first.shape, second.shape) == ((2, 64), (1, 64))
    swapped = regions.features(pixels, boxes[::-1])
    assert not torch.allclose(swapped[0][0], second[0])
    with torch.no_grad():
        raw = small_detector.head.roi(regions._maps(pixels), boxes, pixels)
        assert torch.allclose(regions.layer(torch.cat([first, second])), raw.logits, atol=1e-6)
    by_hand = first @ regions.layer.weight.T / (first.norm(dim=1)[:, None] * regions.layer.weight.norm(dim=1))
    assert torch.allclose(regions.cosines(pixels, boxes)[0], by_hand, atol=1e-6)
    assert not regions.layer._forward_pre_hooks


def test_a_prototype_points_to_its_examples_and_to_everything_less_than_a_trained_weight():
    common = torch.tensor([1.0, 0, 0, 0])
    weight = torch.tensor([[0.3, 0.9, 0, 0], [0.1, 0, 2.0, 0]])
    examples = torch.tensor([[5.0, 0, 0, 1.0], [7.0, 0, 0, 1.5]])
    length = ((0.09 + 0.81) ** 0.5 + 4.01**0.5) / 2
    for reserve, along in ((0.0, 0.1 / 4.01**0.5), (0.25, 0.1 / 4.01**0.5 - 0.25), (2.0, -1.0)):
        made = prototype(examples, common, weight, reserve)
        assert made.tolist() == pytest.approx([length * along, 0, 0, length * (1 - along**2) ** 0.5], abs=1e-6)


def test_only_so_many_examples_of_the_right_class_count(small_detector):
    regions = CosineRegions.of(small_detector)
    pixels = images((64, 64))
    boxes = torch.tensor([[4.0, 4, 30, 40], [10, 10, 60, 60], [20, 8, 50, 30], [2, 2, 20, 20]])
    wanted = target(*boxes.tolist(), labels=[1, 0, 1, 1])
    found = look_at(regions, [Batch(pixels, (wanted,))], [1, 0], 2, torch.device("cpu"))
    expected = regions.features(pixels, [boxes])[0]
    assert torch.allclose(found.features[0], expected[[0, 2]])
    assert torch.allclose(found.features[1], expected[[1]])


def test_new_rows_stand_where_a_data_set_of_all_classes_has_them(small_detector):
    stored = checkpoint_of(small_detector, Categories(("a", "c"), (1, 5)))
    regions, rows = CosineRegions.of(small_detector), torch.arange(128.0).view(2, 64)
    model = model_section()
    copy = grown(stored, regions, model, Categories(("z", "b"), (9, 3)), rows)
    assert (copy.categories.names, copy.categories.ids) == (("a", "b", "c", "z"), (1, 3, 5, 9))
    name = "head.roi.network.cls_score.weight"
    old = stored.weights[name]
    assert torch.equal(copy.weights[name], torch.stack([old[0], rows[1], old[1], rows[0]]))
    bias = "head.roi.network.bbox_pred.bias"
    by_class = stored.weights[bias].view(2, 4)
    mean = by_class.mean(0)
    assert torch.equal(copy.weights[bias].view(4, 4), torch.stack([by_class[0], mean, by_class[1], mean]))
    unsorted = checkpoint_of(small_detector, Categories(("a", "c"), (5, 1)))
    copy = grown(unsorted, regions, model, Categories(("b",), (3,)), rows[:1])
    assert copy.categories.ids == (5, 1, 3), "an order of their own stays, and new ones come last"


def model_section(*said):
    said = [*small("faster_rcnn_fpn"), "loss@model.head.roi.cls_loss=CosFace", *said]
    return plain(compose_model("faster_rcnn_fpn", said))


def checkpoint_of(detector, categories, *said):
    weights = {k: v.clone() for k, v in detector.state_dict().items()}
    bias = weights["head.roi.network.bbox_pred.bias"]
    bias.copy_(torch.arange(len(bias)))
    return Checkpoint(
        step=1, detector=weights, categories=categories, config={"model": model_section(*said)}, metrics={}
    )


@pytest.mark.parametrize("most", [2, 3])
def test_classes_keep_their_boxes_beyond_the_number_from_which_they_would_share_one(most):
    """Two classes and two more, where above so many there is one box for all: what is stored has a box for each."""
    said = f"model.head.roi.network.agnostic_above={most}"
    node = model_section(said)
    torch.manual_seed(0)
    detector = build_detector(node, Categories(("a", "c"), (1, 5)))
    stored = checkpoint_of(detector, Categories(("a", "c"), (1, 5)), said)
    copy = grown(stored, CosineRegions.of(detector), node, Categories(("d", "e"), (7, 9)), torch.randn(2, 64))
    again = build_detector(copy.config["model"], copy.categories)
    load_weights(again, copy.weights, "copy")
    bias = "head.roi.network.bbox_pred.bias"
    assert torch.equal(copy.weights[bias][:8], stored.weights[bias])
    assert len(copy.weights[bias]) == 16
    assert stored.config["model"]["head"]["roi"]["network"]["agnostic_above"] == most, "the given one stays"


def test_classes_that_share_a_box_go_on_sharing_it():
    said = "model.head.roi.network.agnostic_above=1"
    node = model_section(said)
    detector = build_detector(node, Categories(("a", "c"), (1, 5)))
    stored = checkpoint_of(detector, Categories(("a", "c"), (1, 5)), said)
    copy = grown(stored, CosineRegions.of(detector), node, Categories(("d", "e"), (7, 9)), torch.randn(2, 64))
    assert copy.config == stored.config
    bias = "head.roi.network.bbox_pred.bias"
    assert torch.equal(copy.weights[bias], stored.weights[bias])


def test_classes_that_cannot_be_added_are_named(checkpoint, examples, tmp_path, monkeypatch, capsys):
    start = (add_class.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", f"output={tmp_path / 'o'}")
    said = call(*start, code=1)
    assert "data.train: the detector knows " in said
    assert "already; classes=[...] names those of the data to add" in said
    assert "reserve: must be float from 0 to 1, not 1.5" in call(*start, "reserve=1.5", code=2)
    assert "classes: data.train has no lorry; it has " in call(*start, *coco(examples), "classes=[lorry]", code=1)
    content = json.loads(examples.read_text())
    assert "classes: is empty; data.train has " in call(*start, *coco(examples), "classes=[]", code=1)
    first, second = (category["name"] for category in content["categories"][:2])
    left = [a for a in content["annotations"] if a["category_id"] != content["categories"][0]["id"]]
    file = tmp_path / "few.json"
    file.write_text(json.dumps(content | {"annotations": left}))
    few = coco(file, examples.parent / "images")
    assert f"{file}: not one box to learn from of {first}" in call(*start, *few, code=1).replace("\n", "")
    assert "1 classes have become" not in call(*start, *few, f"classes=[{second}]")
    content["categories"][0]["id"], content["annotations"] = 1, []
    file.write_text(json.dumps(content))
    known = load_checkpoint(checkpoint).categories
    taken = known.names[known.ids.index(1)] if 1 in known.ids else None
    if taken:
        assert f"{first} has the id 1, which is {taken}'s in the detector" in call(*start, *few, code=1)


def test_the_copy_is_not_written_over_a_checkpoint(checkpoint, examples, tmp_path, monkeypatch, capsys):
    kept = shutil.copy(checkpoint, tmp_path / "kept.pt")
    before = kept.read_bytes()
    start = (add_class.main, monkeypatch, capsys, "device=cpu", *coco(examples))
    said = call(*start, f"checkpoint={kept}", f"output={tmp_path}", code=2)
    assert f"output: {kept} is there, and a copy is not written over it: choose another folder" in said
    assert kept.read_bytes() == before
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text("{}")
    said = call(*start, f"checkpoint={kept}", f"output={run}", code=2)
    assert f"output: {run} is the folder of a run, whose files are its own" in said
    assert not (run / "kept.pt").exists()


def test_a_head_without_a_cosine_layer_is_refused(tmp_path, monkeypatch, capsys):
    plain_head = train_briefly(tmp_path)
    said = call(add_class.main, monkeypatch, capsys, f"checkpoint={plain_head}", "device=cpu", code=1)
    assert "with CrossEntropy has no cosine layer for regions: train a two-stage head with loss@model" in said
    torch.manual_seed(0)
    dense = build_model(
        "retinanet", Categories(("a",), (1,)), [*small("retinanet"), "loss@model.head.cls_loss=NormalizedSoftmax"]
    )
    with pytest.raises(
        ValueError, match="RetinaHead with NormalizedSoftmax has weights of a class for each anchor of a"
    ):
        CosineRegions.of(dense)
    staged = build_model("flow", Categories(("a",), (1,)), [*small("flow"), "loss@model.head.cls_loss=CosFace"])
    with pytest.raises(ValueError, match="FlowHead with CosFace has weights of a class for each of its stages, which"):
        CosineRegions.of(staged)
    plain_cells = build_model("retinanet", Categories(("a",), (1,)), small("retinanet"))
    with pytest.raises(
        ValueError, match="RetinaHead with Focal has no cosine layer for regions: train a two-stage head"
    ):
        CosineRegions.of(plain_cells)


def test_ids_and_names_are_looked_at():
    known = Categories(("a", "b"), (1, 2))
    assert new_categories(known, Categories(("c", "d"), (7, 9)), None, "data.train").names == ("c", "d")
    assert new_categories(known, Categories(("a", "d"), (1, 9)), ["d"], "data.train").ids == (9,)
    with pytest.raises(ValueError, match="c has the id 2, which is b's in the detector: give new classes ids"):
        new_categories(known, Categories(("c",), (2,)), None, "data.train")


def test_other_tensors_of_each_class_are_refused(small_detector):
    regions = CosineRegions.of(small_detector)
    stored = checkpoint_of(small_detector, Categories(("a", "c"), (1, 5)))
    odd = CosineRegions(regions.detector, regions.head, regions.roi, regions.layer, "another")
    with pytest.raises(ValueError, match=r"cls_score\.weight has numbers of each class, and a new one's are not known"):
        grown(stored, odd, model_section(), Categories(("z",), (9,)), torch.zeros(1, 64))
