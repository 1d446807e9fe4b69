"""Every command of README and docs is run, as it stands there, on a few small pictures and for a few steps.

What stands for something of the reader's (``RUN_FOLDER``, ``...``) is filled in; a piece of a command that the text
speaks of (``tta=flip``) goes into the tool that the text means.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from detkit.app.assemble.schema import TrainSchema
from detkit.config import validate
from tests.app.documents import ROOT, Found, commands, own_experiment, plugin
from tests.app.test_configs import composed
from tests.app.test_import import trained
from tests.data.builders import picture
from tests.data.test_configs import write
from tests.models.test_foreign_weights import detectron2_rcnn

#: What is not run, and why. An entry that no page has is a mistake.
NOT_RUN = {
    **dict.fromkeys(("make quickstart", "make test", "make lint types", "make test-slow"), "installs, then runs this"),
    **dict.fromkeys(
        ("pip install 'detkit[export]'", "pip install -e '.[slurm]'", "pip install .",
         "pip install 'detkit[NAME]'", "pip install '.[NAME]'",
         "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"), "asks the package index"),
    **dict.fromkeys(
        ("python datasets/bccd.py", "python datasets/coco.py", "python datasets/coco.py --split val",
         "python datasets/voc.py --to-coco"), "downloads; tests/datasets has them with a server of its own"),
    **dict.fromkeys(
        ("python tools/benchmark.py ops --device cuda", "sync_bn=true", "trainer.precision=fp16",
         "python tools/benchmark.py training --models coco_r50 --size 800 1333 --batch 8 --device cuda"), "needs a GPU"),
    **dict.fromkeys(
        ("hydra/launcher=submitit_slurm", "hydra/launcher=ray", "hydra/launcher=joblib",
         'hydra/sweeper=optuna "optim.lr=interval(1e-4,1e-2)" hydra.sweeper.n_trials=20'), "an extra of its own"),
    "sampler@model.head.roi.sampler=MySampler": "a class of the reader's, which the page does not give",
    "sweep=": "speaks of the key, not of a value",
    "init_from=mtcnn:FOLDER": "the published files; tests/models/mtcnn loads them where they are",
    "MALLOC_TRIM_THRESHOLD_=131072": "a variable of the C library; tests/utils/test_memory.py sets it",
    "trainer.compile=true": "compiles for minutes; tests/models/test_compiled.py does it",
    "python tools/benchmark.py training --models faster_rcnn retinanet centernet --compile --threads 1 --repeats 3": "compiles for minutes",
    "python tools/benchmark.py ops --device cpu --repeats 5": "made brief it is `ops`, which is run",
    "python tools/benchmark.py labels --checkpoint runs/.../best.pt --annotations datasets/shapes/3e9fc27172dd/train.json "
    "--output planted": "of the pictures of the command before it, which made brief makes others",
}  # fmt: skip

#: The tool that the text means by a piece of a command; the first that fits.
TOOL_OF_PIECE = (
    (r"tta|data\.root=/elsewhere|model\.head\.roi\.selector", "evaluate.py checkpoint=RUN_FOLDER/best.pt {}"),
    (r"^(minutes|speed|overwrite|pretrained|try_\w+)=", "recipe.py data=coco data.root=ROOT minutes=10 name=mine {}"),
    (r"^resize=true", "export.py checkpoint=RUN_FOLDER/best.pt {} size=[96,128]"),
    (r"^size=\[H,W\]", "export.py checkpoint=RUN_FOLDER/best.pt resize=true {}"),
    (r"^model\.head\.steps=", "train.py experiment=flow/shapes {}"),
    (r"^model\.(max_candidates|min_size|stages)=", "train.py experiment=mtcnn/shapes_tiny {}"),
    (r"^val_loss=", "evaluate.py checkpoint=RUN_FOLDER/best.pt {}"),
    (r"^target\.", "calibrate.py checkpoint=RUN_FOLDER/best.pt {}"),
    (r"^(folds|least|slots|mirror|enlarge)=", "labels.py checkpoint=RUN_FOLDER/best.pt folds=2 {} split=train"),
    (r"^scores=", "calibrate.py checkpoint=RUN_FOLDER/best.pt target.recall=0.8 {}"),
    (r"data=null", "inspect_model.py experiment=quickstart {}"),
    (r"data\.train\.(inclusive|zero_based)", "inspect_data.py data=voc data.root=ROOT {}"),
    (r"data\.train\.(annotations|on_bad)|on_missing", "inspect_data.py data=coco data.root=ROOT {}"),
    (r"pictures=link", "convert.py data=coco data.root=coco to=coco output=NEW {}"),
    (r"^data=coco$", "inspect_data.py {} data.root=ROOT"),
    (r"data=", "inspect_data.py {}"),
    (r"hydra\.launcher\.slots", "train.py -m experiment=quickstart seed=0,1 {}"),
    (r"seed=", "train.py -m experiment=quickstart {}"),
    (r"resume\.allow", "train.py experiment=quickstart resume=RUN_FOLDER {}"),
    (r"model\.neck\.stride", "train.py experiment=yolov1/shapes {}"),
    (r"experiment=centernet/bccd", "train.py {} data.root=datasets/bccd"),
    (r"experiment=", "train.py {}"),
    (r"", "train.py experiment=quickstart {}"),
)

#: What the reader fills in, and what he would; WHERE is the folder that the command runs in.
FILL = (
    (r"size=\[H,W\]", "size=[96,128]"),
    (r"(export\.py.* size=\S+)", r"\1 output=sized.onnx"),  # the next commands take the one for any size
    (r"/path/to/bccd", "datasets/bccd"),
    (r"(recipe\.py.*) minutes=\d+", r"\1 minutes=0.2"),
    (r"target\.\w+=[\d.]+( delta=[\d.]+)?", "target.false_alarms=0.9 delta=0.5"),  # four images prove no more
    (r"inspect_data\.py data=\.\.\. data\.root=\.\.\.", "inspect_data.py data=coco data.root=ROOT"),
    (r"annotations=\.\.\. data\.train\.images=\.\.\.", "annotations=train.json data.train.images=images"),
    (r"(train\.py|experiment=quickstart) \.\.\.", r"\1 experiment=quickstart"),
    (r"state_dict\.pth \.\.\.", "state_dict.pth data.root=datasets/coco"),
    (r"experiment=\.\.\.", "experiment=quickstart"),
    (r"group=\(\.\*\)_frame", "group=(.*)[.]png"),
    (r"data=<to> data\.root=NEW", "data=coco data.root=coco"),
    (r"resume\.allow=\[\.\.\.\]", "resume.allow=[trainer.steps]"),
    (r" on_missing=", " data.train.on_missing="),
    (r"runs/\.\.\./", "RUN_FOLDER/"),
    (r"OTHER_RUN_FOLDER", "runs/other"),
    (r"RUN_FOLDER", "runs/short"),
    (r"compare\.py (runs/sweep/quickstart_neck_\.\.\.|FOLDER)", "compare.py SWEEP --samples 100"),
    (r"(data=(coco|voc|yolo).*) data\.root=ROOT", r"\1 data.root=\2"),
    (r"data=(coco|voc|yolo) data\.root=ROOT", r"data=\1 data.root=\1"),
    (r"data\.root=ROOT", "data.root=coco"),
    (r"/elsewhere", "WHERE/elsewhere"),
    (r"/path/to/", "WHERE/"),
    (r"--nproc-per-node 4", "--nproc-per-node 2"),
)

FEW = (
    "data.train.num_train=8", "data.train.num_val=4", "data.loader.train.batch_size=2",
    "data.loader.train.num_workers=0", "data.loader.val.num_workers=0",
)  # fmt: skip
BRIEFLY = ("device=cpu", "threads=1", "trainer.steps=2", "trainer.eval_every=2")

#: A mistake that the page shows on purpose, and the exit code that it has there. Without an experiment they are listed.
EXIT_CODES = {"optim.lrr=0.1": 2, "model/bakbone": 2, "transform.train.flp": 2, "optim.lr=2 ": 1}
LISTS_EXPERIMENTS = ("python tools/train.py",)

#: The files that the pages promise of each tool.
PROMISED = {
    "train": ("best.pt", "last.pt", "config.yaml", "manifest.json", "metrics.csv", "log.txt", "evaluation.json",
              "detections.npz", "detections.png", "result.json"),
    "audit": ("audit.html", "audit.json"),
    "recipe": ("mine.yaml",),
    "explain": ("explanation.html", "explanation.json"),
    "evaluate": ("evaluation.json", "detections.json"),
    "calibrate": ("calibration.html", "calibration.json", "best.pt"),
    "labels": ("labels.html", "labels.json"),  # apply= leaves what the table says
    "predict": ("detections.json",),
    "export": (),  # named by the command
    "publish": (),
    "import": (),
    "inspect_data": ("report.json", "boxes.png"),
    "inspect_model": ("model.json", "receptive_field.png"),
    "compare": ("index.html", "table.md", "table.csv", "differences.png", "learning_curves.png"),
    "replay": ("divergence_step2.png",),
}  # fmt: skip


class Place:
    """A folder as the reader's checkout, in which commands run; what one command needs, others have made before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tools").symlink_to(ROOT / "tools")
        (folder / "my_necks.py").write_text(plugin())
        (folder / "mycfg/experiment").mkdir(parents=True)
        (folder / "mycfg/experiment/foo.yaml").write_text(own_experiment())
        write_data(folder)
        self.run("python tools/train.py experiment=quickstart hydra.run.dir=runs/short")

    def run(self, text: str, code: int = 0) -> str:
        """Fill in ``text`` and run it, small; what it printed, and it must end with ``code``."""
        command = self._with_what_it_needs(text)
        variables, words = self._words(command)
        if "torchvision:fasterrcnn" in command:
            variables["TORCH_HOME"] = str(self._with_stand_in("fasterrcnn_mobilenet_v3_large_320_fpn"))
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1", **variables}
        done = subprocess.run(
            words, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
        )
        assert done.returncode == code, f"{command}\n{shlex.join(words)}\n{done.stdout}"
        return done.stdout

    def made_since(self, start: float) -> set[str]:
        """The names of the files that are as young as ``start``, seconds of the clock."""
        return {p.name for p in self.folder.rglob("*") if p.is_file() and p.stat().st_mtime >= start}

    def _with_what_it_needs(self, text: str) -> str:
        text = filled(text).replace("output=NEW", f"output=new_{time.time_ns()}")  # nothing is written over
        if "runs/other" in text.split() and not (self.folder / "runs" / "other").is_dir():
            self.run("python tools/train.py experiment=quickstart seed=1 hydra.run.dir=runs/other")
        if "runs/own/" in text and not (self.folder / "runs" / "own").is_dir():
            self.run(next(found.text for found in commands() if "runs/own" in found.text))
        if "runs/flow/" in text and not (self.folder / "runs" / "flow").is_dir():
            self.run("python tools/train.py experiment=flow/shapes hydra.run.dir=runs/flow")
        if re.search(r"--config-dir recipes|=recipes/", text) and not (self.folder / "recipes").is_dir():
            self.run(next(found.text for found in commands() if tool_of(found.text) == "recipe"))
        if "replay.py" in text and not (self.folder / "runs" / "hot").is_dir():
            self.run(next(found.text for found in commands() if "optim.lr=2 " in found.text), code=1)
        if (found := re.search(r"hydra\.run\.dir=(\S+)", text)) and (self.folder / found[1] / "last.pt").is_file():
            text = text.replace(found[0], f"{found[0]}_{time.time_ns()}")  # neither is a run
        if "apply=" in text:
            text = self._edited(text)
        if "/elsewhere" in text:
            shutil.copytree(self.folder / "datasets/shapes", self.folder / "elsewhere")
        if "resume=auto" in text:  # a run that was stopped
            ignored = shutil.ignore_patterns("result.json")
            shutil.copytree(self.folder / "runs/short", self.folder / "runs/quickstart/stopped", ignore=ignored)
        return text.replace("SWEEP", self._sweep() if "SWEEP" in text else "").replace("WHERE", str(self.folder))

    def _edited(self, text: str) -> str:
        """``text`` about a table in which a row is accepted."""
        if not (table := self.folder / "labelled/findings.csv").is_file():
            self.run("python tools/labels.py checkpoint=RUN_FOLDER/best.pt least=0 output=labelled")
            table.write_text(table.read_text().replace("\n,", "\nyes,", 1))
        return re.sub(r"apply=\S+", "apply=labelled/findings.csv", text)

    def _sweep(self) -> str:
        if not (found := list(self.folder.glob("runs/sweep/quickstart_neck_*"))):
            self.run("python tools/train.py -m experiment=quickstart sweep=neck")
            found = list(self.folder.glob("runs/sweep/quickstart_neck_*"))
        return str(found[0].relative_to(self.folder))

    def _with_stand_in(self, name: str) -> Path:
        """torchvision's cache, with random weights in the place of a published file."""
        file = self.folder / "hub/checkpoints" / get_model_weights(name)["COCO_V1"].url.rpartition("/")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(get_model(name, weights=None, weights_backbone=None).state_dict(), file)
        return self.folder

    def _words(self, command: str) -> tuple[dict[str, str], list[str]]:
        """The variables and the words of ``command``, with what makes it small."""
        words = shlex.split(command)
        variables = {}
        while re.match(r"[A-Z_]+=", words[0]):
            variables.update([words.pop(0).split("=", 1)])
        modules = {"torchrun": ["-m", "torch.distributed.run"], "tensorboard": ["-m", "tensorboard.main", "--inspect"]}
        return variables, [sys.executable, *modules.get(words[0], []), *words[1:], *small(command)]


def filled(text: str) -> str:
    for pattern, filling in FILL:
        text = re.sub(pattern, filling, text)
    return text


def tool_of(command: str) -> str:
    """``train`` of ``python tools/train.py ...``."""
    found = re.search(r"tools/(\w+)\.py|-m detkit(?:\.app\.| )(\w+)", command)
    return (found[1] or found[2]) if found else ""


def small(command: str) -> list[str]:
    """What makes ``command`` take seconds."""
    tool = tool_of(command)
    is_generated = not re.search(r"data\.root=(?!my data)|--config-dir recipes", command)
    few = list(FEW) if is_generated else list(FEW[2:])
    if tool == "train":
        is_run = "experiment=" in command and "--cfg" not in command and "modell" not in command
        return [*few, *BRIEFLY, *_of_one(command)] if is_run else []
    if tool == "recipe":
        return ["device=cpu", "threads=1", "pretrained=false", "overwrite=true"]
    if tool in ("audit", "inspect_model"):
        own = ["device=cpu", "num_inputs=1"] if tool == "inspect_model" else []
        return [*own, *_of_one(command), *([] if "data=null" in command else few)]
    if tool == "inspect_data":
        return list(FEW[:2]) if "data=shapes" in command else []
    if tool == "benchmark":
        return _briefly_timed(command)
    if tool == "export":
        return ["num_images=2", "evaluate=false"]
    if tool == "labels":
        folds = ["folds=2", "trainer.steps=2"] if "folds=" in command else []
        return [] if "apply=" in command else ["device=cpu", *folds]
    return ["device=cpu"] if tool in ("evaluate", "explain", "calibrate", "predict") else []


def _of_one(command: str) -> list[str]:
    """What makes one command small, or spares it a download."""
    rules = {
        "Timm": ["model.backbone.pretrained=false"],
        "bccd_mobilenetv2": ["model.backbone.weights=null"],
        "coco_r50": [
            "model.backbone.weights=null",
            "transform=square_320",
            "transform.size=128",
            "trainer.precision=fp32",
        ],
        "resume.allow": ["trainer.steps=3"],
        "sweep=neck": ["seed=0"],
        "sweep=learning_curve": ["seed=0"],
        "optim.lr=2 ": ["hydra.run.dir=runs/hot", "trainer.steps=20", "data.loader.train.batch_size=4"],
    }
    return [word for key, words in rules.items() if key in command for word in words]


def _briefly_timed(command: str) -> list[str]:
    what = command.split()[2]
    if what == "labels":
        return ["--samples", "10", "--device", "cpu"]
    short = {
        "ops": ["--shrink", "16"],
        "training": ["--batch", "1", "--models", "yolov1"],
        "inference": ["--batches", "1", "--models", "yolov1"],
        "loading": ["--sizes", "64"],
        "scaling": ["--what", "prediction", "--most", "2"],
        "vocabulary": ["--classes", "9"],
        "evaluation": ["--images", "9"],
    }
    return ["--repeats", "1", *short.get(what, [])]


def write_data(folder: Path) -> None:
    """The reader's data: COCO's, VOC's and YOLO's layout, ``datasets/bccd``, ``datasets/coco`` and a photograph."""
    for kind, name in (("coco", "coco"), ("voc", "voc"), ("yolo", "yolo"), ("coco2017", "datasets/coco")):
        write(kind, folder / name)
    real = Path(os.environ.get("DETKIT_DATA", "nowhere")) / "bccd"
    if real.is_dir():
        write_few_of(real, folder / "datasets/bccd")
    else:
        write("bccd", folder / "datasets/bccd")
    cv2.imwrite(str(folder / "photo.jpg"), picture())


def write_few_of(source: Path, target: Path, count: int = 6) -> None:
    """A data set in COCO's layout with the first pictures of each split of another."""
    target.mkdir(parents=True)
    (target / "images").symlink_to(source / "images")
    for split in ("train", "val"):
        content = json.loads((source / f"{split}.json").read_text())
        content["images"] = content["images"][:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (target / f"{split}.json").write_text(json.dumps(content))


def write_torchvision_weights(path: Path) -> None:
    torch.save(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), path)


def whole(found: Found) -> str:
    """The command of ``found``: itself, or the tool that the text means with this piece in its place."""
    if found.whole:
        return found.text
    return "python tools/" + next(t for pattern, t in TOOL_OF_PIECE if re.match(pattern, found.text)).format(found.text)


def test_what_is_not_run_stands_in_a_page():
    assert set(NOT_RUN) <= {found.text for found in commands()}


def test_the_files_that_contributing_names_are_there():
    named = re.findall(r"`((?:tests|docs)/[\w/]+\.(?:py|md))`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 10
    assert not [path for path in named if not (ROOT / path).is_file()]


def test_commands_are_found_in_blocks_in_the_text_and_in_output():
    texts = {found.text for found in commands()}
    assert len(texts) > 80
    assert {"tensorboard --logdir runs", "python tools/train.py", "trainer.accumulate=4"} <= texts
    assert "python tools/replay.py runs/hot/divergence_step2.pt" in texts


@pytest.mark.slow
def test_training_commands_compose_and_pass_the_checker():
    """The quick half of what the slow test does."""
    exec(plugin(), {"__name__": "my_necks"})
    checked = 0
    for command in (filled(found.text) for found in commands() if found.whole):
        words = [word for word in shlex.split(command) if re.match(r"[~+]?[a-z][\w@./]*=", word)]
        if tool_of(command) != "train" or not words or any(key in command for key in (*EXIT_CODES, "--config-dir")):
            continue
        if " -m " in command:  # of each list the first; what sweep= files hold has a test of its own
            words = [word.partition(",")[0] for word in words if not word.startswith("sweep=")]
        words = [word for word in words if not word.startswith(("resume", "hydra."))]
        validate(composed(*words, *([] if "data.root=" in command else ["data.root=somewhere"])), TrainSchema)
        checked += 1
    assert checked >= 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("checkout"))


@pytest.mark.slow
@pytest.mark.parametrize("found", [f for f in commands() if f.text not in NOT_RUN], ids=lambda f: f.text[:70])
def test_runs(found: Found, place: Place) -> None:
    command = whole(found)
    code = next((code for key, code in EXIT_CODES.items() if key in command), 2 * (command in LISTS_EXPERIMENTS))
    if "model_final.pkl" in command:
        arrays = {name: value.numpy() for name, value in trained(detectron2_rcnn(80)).items() if "pixel_" not in name}
        (place.folder / "model_final.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "a test"}))
    if "state_dict.pth" in command:
        write_torchvision_weights(place.folder / "state_dict.pth")
    start = time.time() - 1  # a disk's clock may be coarser
    output = place.run(command, code)
    assert "Traceback" not in output
    if "optim.lr=2 " in command:
        assert "likeliest cause: the learning rate 2 is too high" in output
    if command in LISTS_EXPERIMENTS:
        assert "experiment=quickstart" in output
    elif code == 0 and "--cfg" not in command:
        # of a run that goes on the best may be an old one
        promised = ("result.json",) if "resume=" in command else PROMISED.get(tool_of(command), ())
        if "apply=" in command:
            promised = ("accepted.json",)
        missing = set(promised) - place.made_since(start)
        assert not missing, f"{command} left no {missing}\n{output}"
