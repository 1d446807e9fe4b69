"""``tools/recipe.py``: the file it writes trains, is the same again for the same timings, and strange sets are told of."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from detkit.app import train
from detkit.app.assemble.trainer import build_trainer
from detkit.app.recipe import tool, weights
from detkit.app.recipe.files import Place, name_of
from detkit.app.recipe.findings import look
from detkit.app.recipe.given import DETECTORS, Choice, Fits, Given, Measured
from detkit.app.recipe.made import make, options
from detkit.app.recipe.measure import RATIOS, machine
from detkit.app.recipe.notes import notes
from detkit.app.recipe.speed import Line, Pace, Speeds, read_speeds
from detkit.app.recipe.tries import Trial, Tried
from detkit.app.recipe.writer import Writer
from detkit.app.recipe.written import experiment
from detkit.app.run.folder import RunFolder
from detkit.app.run.next_command import word
from detkit.app.sweep.folder import read_jobs
from detkit.config import ConfigError
from detkit.data import CocoDataset
from tests.app.tools import call
from tests.data.builders import annotation, image, write_coco
from tests.data.test_configs import write

PACE = Pace(Line(0.05, 2.0), Line(0.05, 0.5))
SPEEDS = Speeds("2 CPU threads", 1.0, dict.fromkeys(DETECTORS, PACE))


@pytest.fixture
def recipe(tmp_path, monkeypatch, capsys):
    """Runs the tool on ``data`` with given timings; the file's text, and what was said."""
    SPEEDS.write(tmp_path / "given.json")
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        start = ("minutes=10", "pretrained=false", "device=cpu", "threads=1", "speed=given.json", "name=mine")
        said = call(tool.main, monkeypatch, capsys, *start, *words, code=code)
        file = tmp_path / "recipes" / "experiment" / "mine.yaml"
        return (file.read_text() if file.is_file() else ""), said

    return run


def one_set(root, boxes, size=(48, 64), names=("cat",), val=True, num_images=2, **more):
    """A data set of pictures that all have ``boxes``, x y w h px."""
    images = [image(i + 1, *size) for i in range(num_images)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    rows = [(i, k, box) for i in range(num_images) for k, box in enumerate(boxes)]
    annotations = [
        annotation(n + 1, i + 1, box, category_id=k % len(names) + 1, **more) for n, (i, k, box) in enumerate(rows)
    ]
    write_coco(root, images, annotations, categories)
    if val:
        (root / "val.json").write_bytes((root / "train.json").read_bytes())
    return root


def test_what_is_found_by_hand(tmp_path):
    root = one_set(tmp_path / "set", [[0, 0, 16, 4], [8, 8, 32, 32]], names=("cat", "dog", "owl"), num_images=3)
    found = look(CocoDataset(root=str(root)), CocoDataset(root=str(root), annotations="val.json"))
    assert (found.num_images, found.num_val, found.num_shared, found.names) == (3, 3, 3, ("cat", "dog", "owl"))
    assert found.boxes.tolist() == found.images.tolist() == found.val_boxes.tolist() == [3, 3, 0]
    assert found.per_image.tolist() == [2, 2, 2]
    assert (found.long_side, found.aspect) == (64, 0.75)
    assert found.own_sides == pytest.approx([8, 32] * 3)
    assert found.sides == pytest.approx([1 / 8, 1 / 2] * 3)
    assert found.side(0.5, 128) == pytest.approx(40), "between 16 and 64 px"
    assert found.share_below(17, 128) == 0.5
    assert found.megapixels(1000) == pytest.approx(0.75)
    assert not found.is_grey


def test_the_file_composes_and_is_the_same_for_the_same_timings(recipe, tmp_path):
    write("coco", tmp_path / "set")
    text, said = recipe("data.root=set")
    assert "next: python tools/train.py --config-dir recipes experiment=mine" in said
    assert "12 images to learn from, 12 to measure by" in text
    assert "NOTE: 12 of the 12 images to measure by are learnt from too" in text
    content = yaml.safe_load(text)
    assert content["data"]["root"] == str(tmp_path / "set")
    assert content["threads"] == 1
    assert content["trainer"]["precision"] == "fp32"
    assert recipe("data.root=set", "overwrite=true")[0] == text, "to the bit"


def test_what_is_tried_is_taken_from_the_minutes_and_the_recipe_has_the_rest(recipe, tmp_path, monkeypatch):
    """Of a minute a fifth is for the tries: the file is that for 0.8 minutes."""
    seen = []

    def run(trial, found):
        seen.append(trial.minutes)
        return Tried(found[0], ["Tried."])

    monkeypatch.setattr(Trial, "run", run)
    write("coco", tmp_path / "set")
    tried, _ = recipe("data.root=set", "minutes=1", "try=true", "try_share=0.2")
    assert seen == [0.2]
    words = " ".join(tried.replace("#", "").split())
    assert "Of the 1 min the tries had 0.2, and this training has the rest. Tried." in words
    assert "name=mine try=true try_share=0.2 speed=given.json;" in words, "the command that wrote it"
    rest, _ = recipe("data.root=set", "minutes=0.8", "overwrite=true")
    assert yaml.safe_load(tried) == yaml.safe_load(rest)


@pytest.fixture
def timed(monkeypatch):
    """What is timed, in a word each: backbone, device, threads; no step is taken for it, and nothing is tried."""
    calls = []

    def time_all(bench, dataset, device, threads):
        calls.append((bench.given.backbone, device, threads))
        return dataclasses.replace(SPEEDS, machine=machine(device, threads))

    monkeypatch.setattr(tool, "time_all", time_all)
    monkeypatch.setattr(Trial, "run", lambda trial, found: Tried(found[0], []))
    return calls


def test_a_try_goes_on_with_timings_of_this_very_computer_alone(recipe, tmp_path, timed):
    """Other timings are other steps, and so other runs; those of another device, processor or thread count are no use."""
    write("coco", tmp_path / "set")
    words = ("data.root=set", "try=true", "overwrite=true", "speed=null")
    recipe(*words)
    kept = tmp_path / "recipes" / "experiment" / "mine.speed.json"
    here = json.loads(kept.read_text())["machine"]
    assert here.startswith("1 CPU thread (")
    _, said = recipe(*words)
    assert len(timed) == 1
    assert "timed before: " in said
    _, said = recipe(*words, "threads=2")
    assert [of[1:] for of in timed[1:]] == [("cpu", 2)]
    assert f"is of {here}, and this is {here.replace('1 CPU thread', '2 CPU threads')}: timed anew" in said
    dataclasses.replace(SPEEDS, machine="some GPU").write(kept)
    recipe(*words)
    assert [of[1:] for of in timed[2:]] == [("cpu", 1)]
    assert json.loads(kept.read_text())["machine"] == here
    dataclasses.replace(SPEEDS, machine="some GPU").write(tmp_path / "other.json")
    text, _ = recipe("data.root=set", "try=true", "overwrite=true", "speed=other.json")
    assert len(timed) == 3, "another computer's that is named is taken"
    assert "Timed on some GPU" in text


def test_timings_of_another_network_are_not_gone_on_with(recipe, tmp_path, timed):
    write("coco", tmp_path / "set")
    words = ("data.root=set", "try=true", "overwrite=true", "speed=null")
    recipe(*words)
    _, said = recipe(*words, "pretrained=true", "data.loader.train.num_workers=0")
    assert [backbone for backbone, *_ in timed] == ["resnet18_narrow", "mobilenetv2"]
    other = "timed with backbone {}, here {}; data.loader.train.num_workers {}, here {}"
    kept = "recipes/experiment/mine.speed.json"
    assert f"{kept}: {other.format('resnet18_narrow', 'mobilenetv2', 'nothing', 0)}: timed anew" in said
    text, said = recipe(*words, f"speed={kept}")
    assert f"speed: {kept}: {other.format('mobilenetv2', 'resnet18_narrow', 0, 'nothing')}\n" in said
    assert "training 0.050" in text, "what is named is taken all the same"


def test_a_speed_file_tells_what_was_timed(tmp_path):
    timed = {"backbone": "mobilenetv2", "sizes": [256, 416], "aspect": 0.75}
    file = tmp_path / "a.json"
    dataclasses.replace(SPEEDS, timed=timed).write(file)
    read = read_speeds(file, DETECTORS)
    assert (read, read.unlike(timed)) == (dataclasses.replace(SPEEDS, timed=timed), "")
    assert read.unlike({**timed, "sizes": [256, 320]}) == "timed with sizes [256, 416], here [256, 320]"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "timed": "cats"}))
    with pytest.raises(ConfigError, match=r"speed: .* timed: must be a mapping, not 'cats'"):
        read_speeds(file, DETECTORS)
    del content["timed"]
    file.write_text(json.dumps(content))
    assert read_speeds(file, DETECTORS).unlike(timed) == "does not say what was timed"


@pytest.mark.slow
def test_a_file_that_is_there_stays_unless_it_is_told(recipe, tmp_path):
    write("coco", tmp_path / "set")
    text, _ = recipe("data.root=set")
    _, said = recipe("data.root=set", "minutes=1", code=2)
    assert "recipes/experiment/mine.yaml is there already: overwrite=true replaces it, name=NAME writes another" in said
    other, _ = recipe("data.root=set", "minutes=1", "overwrite=true")
    assert yaml.safe_load(other)["trainer"]["steps"] < yaml.safe_load(text)["trainer"]["steps"]


def test_the_command_in_the_head_writes_the_same_file(recipe, tmp_path, monkeypatch, capsys):
    """With all that was typed, and the timings that were made, whatever another timing would give."""
    pace = iter([0.05, 0.5])

    def time_all(bench, dataset, device, threads):
        paces = dict.fromkeys(DETECTORS, Pace(Line(next(pace), 2.0), Line(0.05, 0.5)))
        return Speeds(machine(device, threads), 1.0, paces)

    monkeypatch.setattr(tool, "time_all", time_all)
    write("coco", tmp_path / "my set")
    (tmp_path / "ü").symlink_to("my set")
    text, _ = recipe("data.root=my set", "data.val.root=ü", "minutes=4", "output=my recipes", "speed=null")
    assert text == "", "it is elsewhere"
    file = tmp_path / "my recipes" / "experiment" / "mine.yaml"
    text = file.read_text()
    said = " ".join(line.lstrip("# ") for line in text.splitlines())
    words = shlex.split(re.search(r"Written by python tools/recipe\.py (.*?); not yet", said)[1])
    assert set(words) >= {"minutes=4", "pretrained=false", "threads=1", "device=cpu", "name=mine"}
    assert "minutes=10" not in words
    call(tool.main, monkeypatch, capsys, *words, "overwrite=true")
    assert file.read_text() == text
    data = yaml.safe_load(text)["data"]
    assert (data["root"], data["val"]["root"]) == (str(tmp_path / "my set"), str(tmp_path / "ü"))
    assert "as pretrained=false says" in said
    assert "nor to be fetched" not in said


@pytest.mark.slow
def test_what_the_command_line_says_of_the_data_stands_in_the_file(recipe, tmp_path):
    write("voc", tmp_path / "set")
    text, _ = recipe("data=voc", "data.root=set", "data.train.zero_based=true", "data.loader.train.num_workers=0")
    data = yaml.safe_load(text)["data"]
    assert data["train"] == {"zero_based": True}
    assert data["loader"]["train"]["num_workers"] == 0
    assert {"override /data": "voc"} in yaml.safe_load(text)["defaults"]


@pytest.mark.slow
def test_timings_are_kept_and_nothing_else_is_trained(recipe, tmp_path):
    write("coco", tmp_path / "set")
    _, said = recipe("data.root=set", "speed=null")
    speeds = json.loads((tmp_path / "recipes" / "experiment" / "mine.speed.json").read_text())
    assert set(speeds["paces"]) == set(DETECTORS)
    assert said.count("s an image") == 6
    assert speeds["machine"] == machine("cpu", 1)
    assert all(pace["train"]["fixed"] + pace["train"]["per_megapixel"] > 0 for pace in speeds["paces"].values())
    assert sorted(os.listdir(tmp_path)) == ["given.json", "recipes", "set"], "no run, no leftover"


def written(root, val="val.json", minutes=10.0):
    """What the rules make of a data set: its lines by key, and the notes above them."""
    train_set = CocoDataset(root=str(root))
    situation = Given(look(train_set, val and CocoDataset(root=str(root), annotations=val)), minutes, "cpu", False)
    option = options(situation, SPEEDS)[0]
    fits = Fits({(4.0,): 0.0}, dict.fromkeys(RATIOS, 0.0))
    lines = make(situation, Measured(SPEEDS, fits), option, "coco")
    assert yaml.safe_load(experiment("mine", "train", [], lines))["trainer"]["steps"] >= 20
    return {line.key: line.value for line in lines}, " ".join(notes(situation, PACE, option.view))


#: Of one_set, with the file to measure by.
STRANGE = {
    "one image": ({"boxes": [[4, 4, 20, 20]], "num_images": 1}, "val.json"),
    "one size": ({"boxes": [[4, 4, 20, 20]]}, "val.json"),
    "240 classes": ({"boxes": [[4, 4, 20, 20]] * 240, "names": tuple(f"k{i}" for i in range(240))}, "val.json"),
    "tiny": ({"boxes": [[4, 4, 3, 3]]}, "val.json"),
    "no validation": ({"boxes": [[4, 4, 20, 20]]}, None),
    "a strip": ({"boxes": [[0, 0, 40, 40]], "size": (24, 4000)}, "val.json"),
    "8000 px": ({"boxes": [[4000, 100, 20, 20], [10, 10, 24, 24]], "size": (600, 8000), "num_images": 1}, "val.json"),
    "no object to measure by": ({"boxes": [[4, 4, 20, 20]], "names": ("cat", "dog")}, "none.json"),
}


def strange_set(tmp_path, name):
    """The folder of a strange set, and the file to measure by."""
    make, val = STRANGE[name]
    root = one_set(tmp_path / "set", **make)
    if val == "none.json":
        content = json.loads((root / "train.json").read_text())
        (root / val).write_text(json.dumps({**content, "annotations": []}))
    return root, val


@pytest.mark.parametrize(
    ("name", "expected", "words"),
    [
        ("one image", {"data.loader.train.batch_size": 4}, "1 image to learn"),
        ("one size", {}, "all objects are of about one size (20 to 20 px)"),
        (
            "240 classes",
            {"/loss@model.head.roi.cls_loss": "CrossEntropy", "evaluator.max_detections": [1, 10, 300]},
            "with fewer than 20 boxes, and so rarely found: 240 of 240 classes",
        ),
        ("tiny", {"transform.train.resize.size": 128}, "100.0% of the objects are below 8 px"),
        ("no validation", {"trainer.eval_every": None}, "nothing to measure by"),
        ("a strip", {"/transform": "fit"}, "all objects"),
        ("no object to measure by", {}, "not one object in the images to measure by"),
    ],
)
def test_strange_sets_give_recipes_that_say_what_they_lack(tmp_path, name, expected, words):
    lines, said = written(*strange_set(tmp_path, name))
    assert expected.items() <= lines.items()
    assert words in said


def test_long_grey_pictures_with_tiny_objects(tmp_path):
    root, _ = strange_set(tmp_path, "8000 px")
    assert cv2.imwrite(str(root / "images" / "1.png"), np.zeros((600, 8000), np.uint8))
    lines, said = written(root)
    assert (lines["/transform"], lines["transform.train.tile.tile"]) == ("tiles", 256)
    assert lines["transform.val.resize"] == {"_target_": "ResizeFit", "size": 2048}
    assert "tta=tiles" in said
    assert "the images are grey" in said


def trainers(tmp_path, name, **more):
    """Of each detector on a strange set: its option, and what its written file composes and builds."""
    root, val = strange_set(tmp_path, name)
    train_set = CocoDataset(root=str(root))
    val_set = val and CocoDataset(root=str(root), annotations=val)
    said = [Choice("data.root", str(root), ""), *([] if val else [Choice("data.val", None, "")])]
    said += [Choice("data.val.annotations", val, "")] * (val == "none.json")
    situation = Given(look(train_set, val_set), 10.0, "cpu", is_pretrained=False)
    writer = Writer(situation, train_set, "coco", said, 1, Place(tmp_path / "scratch", "timed"), ["minutes=10"])
    for option in options(situation, SPEEDS)[: len(DETECTORS)]:
        place = Place(tmp_path / "recipes", option.name)
        writer.write(place, situation, SPEEDS, option, [])
        cfg = place.compose()
        OmegaConf.update(cfg, "device", "cpu")
        OmegaConf.update(cfg, "callbacks", {}, merge=False)
        for key, value in more.items():
            OmegaConf.update(cfg, key.replace("__", "."), value)
        folder = tmp_path / "runs" / option.name
        folder.mkdir(parents=True)
        yield option, cfg, build_trainer(cfg, folder)[0]


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_written_for_a_strange_set_composes_and_builds(tmp_path, name):
    """As ``tools/train.py --config-dir recipes experiment=NAME`` would, for both detectors."""
    seen = []
    for option, cfg, trainer in trainers(tmp_path, name):
        seen.append(option.detector)
        assert (trainer.val_loader is None) == (name == "no validation")
        assert cfg.trainer.steps == trainer.steps >= 20
        assert len(trainer.categories) == len(STRANGE[name][0].get("names", ("cat",)))
        is_balanced = name == "240 classes" and option.detector == DETECTORS[0]
        assert cfg.data.loader.train.sampling == ({"_target_": "RepeatFactor"} if is_balanced else None)
    assert seen == [*DETECTORS]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one image", "240 classes", "no validation", "8000 px"])
def test_what_is_written_for_a_strange_set_trains_a_step(tmp_path, name):
    loads_here = {f"data__loader__{split}__num_workers": 0 for split in ("train", "val")}
    for _, _, trainer in trainers(tmp_path, name, trainer__steps=1, **loads_here):
        trainer.fit()
        assert (trainer.run_dir / "last.pt").is_file()


def test_commands_in_the_file_hold_in_folders_with_blanks(tmp_path):
    place = Place(tmp_path / "my configs", "mine")
    place.write("mine", [], [])
    assert shlex.split(place.file.read_text().splitlines()[2].lstrip("# "))[2:4] == ["--config-dir", str(place.folder)]
    assert word("data.root", "/my sets/a, b") == 'data.root="/my sets/a, b"'
    assert word("k", ["Kröte", "b"]) == 'k=["Kröte", "b"]'
    assert [word("k", value) for value in (3, None, True, "a/b.c")] == ["k=3", "k=null", "k=true", "k=a/b.c"]


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ConfigError, match="nothing to learn: not one box to train on in 2 images"):
        written(one_set(tmp_path / "set", []))
    with pytest.raises(ConfigError, match="name: must be letters, digits, _ and -, not 'a/b'"):
        name_of("a/b", "set")
    with pytest.raises(ConfigError, match="name: needs a value"):
        name_of(None, None)
    assert (name_of(None, "my set/"), name_of("mine", None)) == ("my_set", "mine")
    with pytest.raises(ConfigError, match="try: must be true or false, not 'perhaps'"):
        tool._taken_out(OmegaConf.create({"try": "perhaps"}))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trry=true", "no key 'trry'; did you mean 'try'?"),
        ("zzz=1", "no key 'zzz'; known: data, device, minutes, name,"),
    ],
)
def test_try_is_among_the_known_keys(recipe, tmp_path, word, message):
    _, said = recipe("data.root=set", word, code=2)
    assert message in said
    assert re.search(r"did you mean|, try, try_seeds", said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("minutes=0",), "minutes: must lie in [0.1, 43200], not 0"),
        (("speed=none.json",), "speed: there is no file none.json"),
        (("try_share=1.0",), "try_share: must lie in [0.05, 0.95], not 1.0"),
        (("minute=3",), "no key 'minute'; did you mean 'minutes'?"),
        (("try=true", "data.val=null"), "try: needs data.val with objects"),
    ],
)
def test_a_mistake_on_the_command_line_leaves_nothing(recipe, tmp_path, words, message):
    one_set(tmp_path / "set", [[1, 1, 9, 9]])
    text, said = recipe("data.root=set", *words, code=2)
    assert message in said
    assert text == ""
    assert not (tmp_path / "recipes").exists()


@pytest.mark.slow
def test_without_a_validation_split_both_ways_out_are_told(recipe, tmp_path):
    one_set(tmp_path / "set", [[1, 1, 9, 9]], val=False)
    _, said = recipe("data.root=set", code=2)
    assert "val.json" in said
    assert "without images to measure by: data.val=null; python tools/convert.py ... 'into=" in said


def test_weights_are_at_hand_in_the_cache_or_where_their_server_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights, "_answers", lambda url: url.startswith("https://download.pytorch.org/models/resnet50"))
    assert weights.at_hand("resnet50")
    assert not weights.at_hand("mobilenetv2")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mobilenet_v2-b0353104.pth").touch()
    assert weights.at_hand("mobilenetv2")


#: Of a computer on which a minute has three options to try.
FAST = Speeds("a computer", 1.0, dict.fromkeys(DETECTORS, Pace(Line(0.02, 1.0), Line(0.02, 0.5))))
SHAPES = ("data=shapes_small", "data.root=shapes", "data.train.num_train=60", "data.train.num_val=20")


@pytest.mark.slow
def test_the_written_recipe_learns_by_the_real_command(tmp_path):
    """Of generated shapes; some 600 steps, of which the quickstart has 1800 (after 600 it has an AP50 of 0.435)."""
    FAST.write(tmp_path / "given.json")
    tools = Path(__file__).resolve().parents[2] / "tools"
    env = {**os.environ, "PYTHONPATH": str(tools.parent), "OMP_NUM_THREADS": "1"}
    own = ("minutes=3", "speed=given.json", "pretrained=false", "device=cpu")
    recipe = [sys.executable, tools / "recipe.py", "data=shapes_small", "data.root=shapes", *own]
    subprocess.run(recipe, cwd=tmp_path, env=env, check=True)
    run = ("--config-dir", "recipes", "experiment=shapes", "hydra.run.dir=run")
    subprocess.run([sys.executable, tools / "train.py", *run], cwd=tmp_path, env=env, check=True)
    assert RunFolder(tmp_path / "run").metrics()["AP50"] > 0.2


@pytest.mark.slow
def test_a_killed_try_goes_on_and_names_an_interval(tmp_path):
    tools = Path(__file__).resolve().parents[2] / "tools"
    env = {**os.environ, "PYTHONPATH": str(tools.parent), "OMP_NUM_THREADS": "1"}
    FAST.write(tmp_path / "given.json")
    time_given = ("minutes=1.5", "try=true", "try_share=0.33")
    own = ("speed=given.json", "pretrained=false", "threads=1", "device=cpu", "name=mine", *time_given)
    command = [sys.executable, str(tools / "recipe.py"), *SHAPES, *own]
    first = subprocess.Popen(command, cwd=tmp_path, env=env)
    folder = tmp_path / "runs" / "recipe" / "mine" / "round1"
    deadline = time.monotonic() + 900
    while not list(folder.glob("*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    assert finished
    assert not (tmp_path / "recipes" / "experiment" / "mine.yaml").exists()
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items()), "not run again"
    assert len(read_jobs(folder)) == 3
    assert len(read_jobs(folder.with_name("round2"))) == 4
    text = " ".join((tmp_path / "recipes" / "experiment" / "mine.yaml").read_text().replace("#", "").split())
    assert "Of the 1.5 min the tries had 0.495, and this training has the rest." in text
    assert "Tried for 0.1 minutes each: " in text
    assert re.search(r"against \w+: AP [+-]\d\.\d+ \[[^]]+\]", text)
    assert "(images alone)" not in text
    assert "; written: " in text


@pytest.mark.slow
def test_a_recipe_trains_a_step(recipe, tmp_path, monkeypatch, capsys):
    write("coco", tmp_path / "set")
    recipe("data.root=set")
    workers = [f"data.loader.{split}.num_workers=0" for split in ("train", "val")]
    call(
        train.main, monkeypatch, capsys, "--config-dir=recipes", "experiment=mine", "device=cpu", "trainer.steps=1",
        "trainer.eval_every=null", "callbacks=null", "hydra.run.dir=run", *workers,
    )  # fmt: skip
    assert RunFolder(tmp_path / "run").result() is not None
