"""What is said in vain is refused: a null for what is not there, a size or folder that nothing reads."""

import pytest

from detkit.app import train
from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.command_line import read_command_line
from detkit.app.cli.components import load_components
from detkit.app.cli.composer import Composer
from detkit.config import ConfigError, validate
from tests.app.tools import call

load_components()
QUICK = "experiment=quickstart"


@pytest.fixture
def write(tmp_path):
    """Write ``text`` as the experiment ``name`` into a folder of one's own; the flags that lead there."""
    (tmp_path / "experiment").mkdir()

    def written(text, name="mine"):
        (tmp_path / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
        return ["--config-dir", str(tmp_path), f"experiment={name}"]

    return written


def refused(*arguments):
    with pytest.raises(ConfigError) as caught:
        read_command_line(arguments, "train")
    return list(caught.value.errors)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("defaults: [override /transform: flip]\ntransform: {train: {flp: null}}",
         "transform.train.flp: there is no 'flp' to leave out; did you mean 'flip'?"),
        ("callbacks: {tensorboad: null}",
         "callbacks.tensorboad: there is no 'tensorboad' to leave out; did you mean 'tensorboard'?"),
    ],
)  # fmt: skip
def test_a_misspelt_null_in_a_file_is_refused_as_on_the_command_line(write, text, line):
    assert refused(*write(text)) == [f"experiment/mine.yaml: {line}"]
    assert refused(*write(text), "optim.lr=0.1") == [f"experiment/mine.yaml: {line}"]
    assert refused(*write(text), "model/neck=upsample", "debug=fast") == [f"experiment/mine.yaml: {line}"]


def test_every_misspelt_null_is_told_and_none_is_taken_for_the_right_name(write):
    said = refused(*write("callbacks: {tensorboad: null, csvv: null, csv: null}"))
    assert said == [
        "experiment/mine.yaml: callbacks.tensorboad: there is no 'tensorboad' to leave out; did you mean 'tensorboard'?",
        "experiment/mine.yaml: callbacks.csvv: there is no 'csvv' to leave out; did you mean 'csv'?",
    ]


def test_a_null_that_leaves_something_out_is_taken(write):
    own = write("defaults: [override /transform: fit]\ntransform: {val: {resize: null}}\ncallbacks: {csv: null}")
    for more in (
        [],
        ["transform=flip"],
        ["debug=overfit"],
        ["callbacks=null"],
        ["debug=fast", "callbacks.progress=null"],
    ):
        assert read_command_line([*own, *more], "train")
    assert read_command_line(["experiment=centernet/coco_r18", "debug=overfit"], "train")
    assert read_command_line([QUICK, "transform=mosaic_320", "transform.train.color=null"], "train")


def test_a_misspelt_null_in_a_sweep_and_from_python(write, tmp_path, monkeypatch, capsys):
    flags = write("callbacks: {tensorboad: null}")
    with pytest.raises(ConfigError, match=r"^experiment/mine.yaml: callbacks.tensorboad: there is no"):
        Composer("train", str(tmp_path))("experiment=mine")
    output = call(
        train.main,
        monkeypatch,
        capsys,
        "-m",
        *flags,
        "optim.lr=0.1,0.2",
        "trainer.steps=1",
        f"run_root={tmp_path}",
        code=2,
    )
    assert "experiment/mine.yaml: callbacks.tensorboad: there is no 'tensorboad' to leave out" in output


def test_a_size_or_folder_that_nothing_reads_is_refused(write):
    size = (
        "transform.size: no step of this configuration reads it (${transform.size}); set the steps' own sizes, or "
        "choose a transform that has it, like square_320"
    )
    root = "data.root: no data set of this configuration reads it (${data.root}); set data.train.root and data.val.root"
    for value in ("0", "320"):
        assert refused(QUICK, f"transform.size={value}") == [size]
    assert refused(*write("defaults: [override /transform: flip]\ntransform: {size: 320}")) == [size]
    assert refused(QUICK, "data.root=here", "data.train.root=a", "data.val.root=b") == [root]
    assert read_command_line([QUICK, "transform=square_320", "transform.size=96", "data.root=here"], "train")
    assert read_command_line([QUICK, "transform.size=96", "transform.train.flip.p='${..size}'"], "train")
    assert read_command_line(["checkpoint=x.pt", "data.root=elsewhere"], "evaluate"), "the checkpoint's data read it"


def test_a_swapped_transform_leaves_an_experiments_size_unread_and_that_is_no_mistake(write):
    own = write("defaults: [override /transform: square_320]\ntransform: {size: 96}")
    assert read_command_line([*own, "transform=flip"], "train")
    assert read_command_line([*own, "debug=overfit"], "train")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["transform=square_320", "transform.size=0"], "transform.size: must be int of 1 or more or null, not 0"),
        (["transform=mosaic_320", "transform.size=-1"], "transform.size: must be int of 1 or more or null, not -1"),
        (["model.head.roi.network.hidden=[0]"],
         "model.head.roi.network.hidden: must be a list of int of 1 or more, not [0]"),
        (["model/neck=upsample", "model.neck.channels=[64,-1]"],
         "model.neck.channels: must be a list of int of 1 or more, not [64, -1]"),
        (["model/head=retinanet", "model.head.num_convs=-1"],
         "model.head.num_convs: must be int of 0 or more, not -1"),
        (["model/head=yolov1", "model.head.num_convs=-1"],
         "model.head.num_convs: must be int of 0 or more or null, not -1"),
    ],
)  # fmt: skip
def test_sizes_that_nothing_can_have_are_refused(overrides, line):
    with pytest.raises(ConfigError) as caught:
        validate(Composer()(QUICK, *overrides).cfg, TrainSchema)
    assert line in caught.value.errors


def test_a_folder_that_nothing_reads_need_not_be_named(monkeypatch, capsys):
    both = (QUICK, "data=coco", "data.train.root=a", "data.val.root=b")
    cfg = Composer("train")(*both).cfg
    validate(cfg, TrainSchema)
    assert cfg.data.root is None
    output = call(train.main, monkeypatch, capsys, *both, "device=cpu", code=2)
    assert "error: data.train: CocoDataset: a/train.json: No such file" in output
    for one in (both[:3], (*both[:2], both[3]), both[:2]):
        with pytest.raises(ConfigError, match=r"^data\.root: needs a value"):
            validate(Composer("train")(*one).cfg, TrainSchema)
