"""Where each value of a composed configuration comes from: the right file and line, class or argument."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from detkit.app.assemble.identity import leaves
from detkit.app.cli.composer import Composer
from detkit.app.cli.overrides import options_of
from detkit.app.cli.paths import config_dir
from detkit.app.inspect import config as show_config
from detkit.app.inspect.value_origins import Origin, origins_of, origins_table, selected
from detkit.config import ConfigError

ROOT = config_dir().parent
EXPERIMENT = """\
# @package _global_
# Mine.
defaults:
  - override /model/backbone: resnet18_narrow
  - override /model/neck: mine
  - override /data: shapes_small
  - override /optim: AdamW

model:
  neck: {num_extra: 2,
         attention: null}
  head:
    rpn:
      sampler:
        num: 99
optim: {lr: 0.25}
data: {root: there}
"""
NECK = """\
defaults: [FPN, _self_]

out_channels: 32
num_extra: 0
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composer]:
    """Composes with an experiment and a neck of one's own, in ``own`` below the current folder."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in (("experiment/mine", EXPERIMENT), ("model/neck/mine", NECK)):
        file = folder / "own" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Composer("train", "own")


@functools.cache
def rows(composer: Composer, *overrides: str) -> list[Origin]:
    return origins_of(composer, *overrides)[0]


def of(composer: Composer, key: str, *overrides: str) -> Origin:
    (found,) = [origin for origin in rows(composer, *overrides) if origin.key == key]
    return found


def line_of(file: str, words: str) -> str:
    """``file:line`` of the first line of a file of detkit's in which ``words`` stand."""
    lines = (ROOT / file).read_text().splitlines()
    return f"{file}:{next(i for i, line in enumerate(lines, start=1) if words in line.partition('#')[0])}"


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("optim.lr", 0.25, "own/experiment/mine.yaml:16"),
        ("model.head.rpn.sampler.num", 99, "own/experiment/mine.yaml:15"),  # also in the head's preset and in the class
        ("model.head.roi.sampler.num", 512, ("configs/model/head/two_stage.yaml", "sampler: {num: 512")),
        ("model.neck.num_extra", 2, "own/experiment/mine.yaml:10"),  # also in the preset
        ("model.neck.attention", None, "own/experiment/mine.yaml:11"),  # within braces, on a line of its own
        ("model.neck.out_channels", 32, "own/model/neck/mine.yaml:3"),
        ("model.neck.extra", "pool", ("detkit/models/necks/fpn.py", "extra: Literal")),
        ("model.neck._target_", "FPN", ("detkit/models/necks/fpn.py", "class FPN(")),
        ("optim.eps", 1e-8, ("detkit/engine/optim.py", "eps: float")),
        ("optim.norm_decay", 0.0, ("detkit/engine/optim.py", "norm_decay: float")),  # of the class that it inherits from
        ("data.root", "there", "own/experiment/mine.yaml:17"),
        ("data.train.root", "there", ("configs/data/shapes.yaml", "root: ${data.root}")),
        ("seed", 0, ("configs/base.yaml", "seed: ")),
        ("model.head.roi.num_classes", "as many as the data have", "data set: its classes"),
    ],
)  # fmt: skip
def test_a_value_is_where_the_row_says(key, value, place, mine):
    found = of(mine, key, "experiment=mine")
    assert found.value == value
    expected = place if isinstance(place, str) else line_of(*place)
    assert found.place.partition(",")[0].partition(" ")[0] == expected.partition(" ")[0]


def test_the_table_in_readme_is_what_is_shown():
    block = (ROOT / "README.md").read_text().partition("model.neck optim.lr --origin\n")[2].partition("```")[0]
    shown = [re.split(r" {2,}", line) for line in block.splitlines() if line != "..."]
    assert len(shown) > 3
    found = {o.key: o for o in origins_of(Composer(), "experiment=quickstart", "optim.lr=0.01")[0]}
    assert shown == [[key, str(found[key].value), found[key].place] for key, *_ in shown]


def test_the_command_line_has_the_last_word(mine):
    assert of(mine, "optim.lr", "experiment=mine", "optim.lr=3")[1:3] == (3, "command line")
    assert of(mine, "optim.lr", "experiment=mine", "optim={lr: 0.5}")[1:3] == (0.5, "command line")
    assert of(mine, "optim.lr", "experiment=mine", "optim.eps=1")[2] == "own/experiment/mine.yaml:16"


def test_an_interpolation_is_told_with_what_it_leads_to(mine):
    found = of(mine, "data.val.num_val", "experiment=mine", "data.train.num_val=7")
    assert found == Origin(
        "data.val.num_val", 7, line_of("configs/data/shapes.yaml", "num_val: ${"), "${data.train.num_val}"
    )


@pytest.mark.parametrize(
    ("overrides", "key", "by"),
    [
        ((), "model.backbone._target_", "own/experiment/mine.yaml:4"),
        ((), "model.neck._target_", "own/experiment/mine.yaml:5"),
        ((), "optim._target_", "own/experiment/mine.yaml:7"),
        ((), "model.head._target_", ("configs/model/faster_rcnn_fpn.yaml", "head: two_stage")),
        ((), "model.head.rpn.box_loss._target_", ("configs/model/head/two_stage.yaml", "/loss@rpn.box_loss: L1")),
        ((), "model.head.roi.box_loss._target_", ("configs/model/head/two_stage.yaml", "/loss@roi.box_loss: L1")),
        ((), "schedule._target_", ("configs/base.yaml", "schedule: MultiStep")),
        (("schedule=Cosine",), "schedule._target_", "command line"),
        (("model/neck=image_pyramid",), "model.neck._target_", "command line"),
        (("loss@model.head.roi.box_loss=GIoULoss",), "model.head.roi.box_loss._target_", "command line"),
    ],
)  # fmt: skip
def test_a_part_says_who_has_chosen_it(overrides, key, by, mine):
    assert of(mine, key, "experiment=mine", *overrides).place.partition(", by ")[2] == (
        by if isinstance(by, str) else line_of(*by)
    )


def test_a_slot_that_the_command_line_has_filled_is_of_its_choice(mine):
    """Also where the recipe says the same value for another class; what is needed there the recipe still gives."""
    swapped = ("experiment=mine", "model/neck=SingleLevel", "optim=SGD")  # its attention is null too
    neck = [origin for origin in rows(mine, *swapped) if origin.key.startswith("model.neck.")]
    assert len(neck) > 3
    assert not [origin for origin in neck if "mine.yaml" in origin.place]
    assert of(mine, "optim.lr", *swapped)[1:3] == (0.25, "own/experiment/mine.yaml:16")
    inside = of(mine, "model.neck.out_channels", "experiment=mine", "model/neck=fpn_se", "model.neck.out_channels=32")
    assert inside.place == "command line"
    preset = of(mine, "model.neck.scales", "experiment=mine", "model/neck=image_pyramid")
    assert preset.place == line_of("configs/model/neck/image_pyramid.yaml", "scales: [")
    same_class = of(mine, "model.neck.num_extra", "experiment=mine", "model/neck=fpn_p3p7")
    assert same_class[1:3] == (2, "own/experiment/mine.yaml:10")


SOME = ("quickstart", "faster_rcnn/coco_r50_dcnv1_fpn_1x", "centernet/coco_r18")


@pytest.mark.parametrize("swaps", [(), ("model/neck=image_pyramid", "optim=SGD", "data=shapes_tiny")])
@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(name, marks=[] if name in SOME else pytest.mark.slow)
        for name in options_of("experiment", Composer().loader.repository)
    ],
)
def test_every_value_of_every_recipe_is_found_on_its_line(experiment, swaps):
    origins, composed = origins_of(Composer(), f"experiment={experiment}", *swaps)
    keys = [origin.key for origin in origins]
    assert len(set(keys)) == len(keys)
    assert set(dict(leaves(OmegaConf.to_container(composed.cfg, resolve=False)))) <= set(keys)
    for origin in origins:
        name = origin.key.rpartition(".")[2]
        if origin.place == "command line" or origin.place.startswith(("model: ", "data set: ")):
            continue
        file, line = re.match(r"([\w/.-]+):(\d+)", origin.place).groups()
        if (ROOT / file).is_file() and name not in ("_target_", "_partial_"):
            assert f"{name}:" in (ROOT / file).read_text().splitlines()[int(line) - 1], origin


def test_keys_select_what_is_there_and_below(mine):
    origins = rows(mine, "experiment=mine")
    assert {o.key for o in selected(origins, ["optim.lr"])} == {"optim.lr"}
    assert {o.key.partition(".")[0] for o in selected(origins, ["optim", "schedule"])} == {"optim", "schedule"}
    with pytest.raises(ConfigError, match=r"model.nek: there is no such key; did you mean 'model.neck'\?"):
        selected(origins, ["optim", "model.nek"])


def test_a_row_each_where_the_screen_has_room(mine):
    chosen = selected(rows(mine, "experiment=mine"), ["optim", "data"])
    console = Console(width=150, file=io.StringIO())
    console.print(origins_table(chosen))
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["key", *(origin.key for origin in chosen)]
    assert max(map(len, lines)) <= 150


def test_the_tool(mine, capsys, monkeypatch):
    show_config.main(["experiment=mine", "--config-dir", "own", "model/neck=image_pyramid", "optim", "--origin"])
    shown = capsys.readouterr()
    assert re.search(
        r"^optim.lr +0.25 +own/experiment/mine.yaml:16$", shown.out.replace(" \n", "\n"), re.MULTILINE
    ) or (re.search(r"^optim.lr +0.25 +own/experiment/mine.yaml:16 *$", shown.out, re.MULTILINE))
    assert "model.neck" not in shown.out
    assert "note: model/neck=image_pyramid: model.neck is ImagePyramid now" in shown.err
    for words, message in (
        (["experiment=mine"], "experiment=mine: is no run; where each value of it comes from is told with --origin"),
        (["own", "--config-dir", "own"], "--config-dir goes with --origin alone"),
        (["experiment=quikstart", "--origin"], "experiment: no option 'quikstart'; did you mean 'quickstart'?"),
        (["experiment=quickstart", "optm", "--origin"], "optm: there is no such key; did you mean 'optim'?"),
    ):
        with pytest.raises(SystemExit) as ended:
            show_config.main(words)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
