"""What is wrong on a command line is told before anything starts, with the right name; paths are taken as they are."""

import shlex
import signal
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from detkit import cli
from detkit.app import train
from detkit.app.cli.command_line import read_command_line
from detkit.app.cli.components import load_components
from detkit.app.cli.overrides import normalize_overrides, quote
from detkit.app.cli.paths import config_dir
from detkit.app.use import evaluate, predict
from detkit.config import ConfigError
from detkit.utils.commands import command
from detkit.utils.interrupt import interrupt_waits
from tests.app.tools import call

load_components()
ROOT = config_dir().parent
QUICK = "experiment=quickstart"


def told(*arguments, tool="train"):
    """What is said of these arguments, a line for each mistake."""
    with pytest.raises(ConfigError) as caught:
        read_command_line(arguments, tool)
    return "\n".join(caught.value.errors)


def value_of(argument, **options):
    """What reaches the configuration of ``argument``."""
    (normal,) = normalize_overrides([argument], **options)
    return OverridesParser.create().parse_override(normal).value()


@pytest.mark.parametrize(
    "text",
    ["my data, v=2", "C:\\data", "C:\\data\\", "a=b\\", "/x/[old] photos (1)", "photos(1)", "Tom's", 'the "best"', "Tom's \"x\"",
     "/home/jürgen/bilder", "http://x/y?a=b&c#d", "a:b", "a$b", "x;y!", "数据", "{x}y"[::-1]],
)  # fmt: skip
def test_a_path_is_taken_as_it_is(text):
    assert value_of(f"data.root={text}") == text
    assert value_of(f"hydra.run.dir={text}") == text
    assert normalize_overrides(normalize_overrides([f"data.root={text}"])) == normalize_overrides([f"data.root={text}"])


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs",)), max_size=12))
def test_what_is_quoted_is_read_as_it_was(text):
    read = OverridesParser.create().parse_override(f"key={quote(text)}").value()
    assert OmegaConf.create({"key": read}).key == text or "\\${" in read


def test_home_and_spaces_round_the_key(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert value_of("data.root=~/x") == "/home/me/x"
    assert normalize_overrides(["data.root = x y "]) == ["++data.root=x y"]


def test_a_command_line_stays_what_it_was():
    assert read_command_line([QUICK, "-m", "seed=1,2", "data.root=x"], "train")[0] == [
        "-m", QUICK, "++seed=1,2", "++data.root=x",
    ]  # fmt: skip
    assert read_command_line(["-sc", "install=bash"], "train")[0] == ["-sc", "install=bash"]
    assert normalize_overrides(["experiment=quickstart.yaml", "model/neck=null", "optim={lr: 3}"]) == [
        QUICK, "~model/neck", "++optim={lr: 3}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.root=[old] photos", "data.root=[old] photos: this value cannot be read; if it is one text, write 'data.root=\"[old] photos\"'; if it is a list"),
        ("optim={_target_: Foo", "optim={_target_: Foo: this value cannot be read"),
        ('data.root="my data', 'data.root="my data: this value cannot be read'),
        ("data.root=“my data”", "data.root=“my data”: typographic quotes are letters; with plain ones: 'data.root=\"my data\"'"),
        ("data.root=a${b", "data.root=a${b: this value cannot be read; if it is one text, write 'data.root=\"a\\${b\"'"),
        ("data.root=a,b", "data.root: a,b is several values: as a list 'data.root=[a,b]', as one text 'data.root=\"a,b\"', as a sweep with -m"),
        ("seed=choice(1,2)", "seed: choice(1,2) is a sweep, which needs -m"),
        ("data.root=", "data.root: there is no value after the ="),
        ("experiment=", "experiment: there is no value after the ="),
        ("data.root", "'data.root': an argument is key=value"),
        ("=", "'=': an argument is key=value, without spaces round the ="),
        ("", "'': an argument is key=value"),
        ("quickstart", "'quickstart': an argument is key=value; did you mean experiment=quickstart?"),
        ("ü.x=1", "ü.x=1: 'ü.x' cannot be a key"),
        ("model.x[0]=1", "model.x[0]=1: 'model.x[0]' cannot be a key"),
        ("experiment=quikstart", "experiment: no option 'quikstart'; did you mean 'quickstart'?"),
        ("experiment=configs/experiment/quickstart.yaml", "experiment: no option 'configs/experiment/quickstart'; did you mean 'quickstart'?"),
        ("experiment=yolov1", "experiment: 'yolov1' is a folder; it has yolov1/bccd_mobilenetv2, yolov1/shapes, yolov1/voc_paper"),
        ("experiment=coco_r50_fpn_1x", "experiment: no option 'coco_r50_fpn_1x'; did you mean 'faster_rcnn/coco_r50_fpn_1x' or 'retinanet/coco_r50_fpn_1x'?"),
        ("experiment=[quickstart,quikstart]", "experiment: no option 'quikstart'; did you mean 'quickstart'?"),
        ("model/bakbone=ResNet", "model/bakbone: no group 'model/bakbone'; did you mean 'model/backbone'?"),
        ("+model/bakbone=ResNet", "+model/bakbone: no group 'model/bakbone'; did you mean 'model/backbone'?"),
        ("~model/bakbone", "~model/bakbone: no group 'model/bakbone'; did you mean 'model/backbone'?"),
        ("model/backbone=ResNt", "model/backbone: no option 'ResNt'; did you mean 'ResNet'?"),
        ("model/neck={_target_: FPN}", "model/neck: takes a name; a mapping goes to its key: model.neck={...}"),
        ("optim=3", "optim: no option '3'; known: AdamW"),
        ("hydra/launchr=x", "hydra/launchr: no group 'hydra/launchr'; did you mean 'hydra/launcher'?"),
        ("los@model.head.roi.cls_loss=Focal", "los@model.head.roi.cls_loss: no group 'los'; did you mean 'loss'?"),
        ("loss@model.head.roi.clsloss=Focal", "loss@model.head.roi.clsloss: there is no such slot; did you mean 'loss@model.head.roi.cls_loss'?"),
        ("~loss@model.head.roi.clsloss", "loss@model.head.roi.clsloss: there is no such slot; did you mean 'loss@model.head.roi.cls_loss'?"),
        ("attention=SE", "attention: there is nothing of 'attention' to choose here; known: callbacks, "),
        ("attention@model.neck.attention=SE", "attention@model.neck.attention: nothing is chosen there yet; to put something in, write +attention@model.neck.attention=NAME"),
        ("attention@model.nek.attention=SE", "attention@model.nek.attention: there is no key 'model.nek.attention'; did you mean 'model.neck.attention'?"),
        ("+model=retinanet", "model: something is chosen there already; without the + another one takes its place"),
        ("transform.train.flp=null", "transform.train.flp: there is no 'flp' to leave out; did you mean 'flip'?"),
        ("callbacks.tensorbord=null", "callbacks.tensorbord: there is no 'tensorbord' to leave out; did you mean 'tensorboard'?"),
        ("~callbacks.tensorbord", "callbacks.tensorbord: there is no 'tensorbord' to leave out; did you mean 'tensorboard'?"),
        ("~modl", "modl: there is no 'modl' to leave out; did you mean 'model'?"),
        ("--steps=5", "--steps=5: there is no such flag; a key has no dashes: steps=5"),
        ("--multirn", "--multirn: there is no such flag; did you mean '--multirun'?"),
        ("--config-dir=nowhere", "--config-dir: there is no folder nowhere"),
        ("--config-name=trian", "--config-name: no file 'trian'; did you mean 'train'?"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_the_right_name(argument, message):
    lines = told(QUICK, argument)
    assert lines.startswith(message)
    assert "append" not in lines


@pytest.mark.parametrize(
    "arguments",
    [["callbacks.tensorboard=null"], ["~callbacks.tensorboard"], ["data.root=null", "init_from=null", "threads=null"],
     ["model.backbone.weights=null"], ["evaluator=null"], ["debug=null", "sweep=null"], ["transform.train.flip=null"],
     ["transform=fit", "transform.train.resize=null"], ["+attention@model.neck.attention=SE"]],
)  # fmt: skip
def test_what_is_there_can_be_left_out(arguments):
    assert len(read_command_line([QUICK, *arguments], "train")[0]) == 1 + len(arguments)


def test_spaces_round_the_equals_sign_and_in_a_value():
    assert told(QUICK, "seed", "=", "3").count("key=value, without spaces round the =") == 3
    assert (
        "'data': an argument is key=value, like seed=1; where a value has spaces, the whole is quoted: 'data.root=my data'"
        in told(QUICK, "data.root=my", "data")
    )


def test_the_argument_that_is_shown_is_one_that_works():
    shown = told(QUICK, "data.root=[old] it's").partition("write ")[2].partition("; if it is a list")[0]
    assert value_of(*shlex.split(shown)) == "[old] it's"


def test_under_a_sweep_commas_are_never_guessed_at():
    assert '\'data.root="a=1,b=2"\'; if it is several, \'data.root="a=1","b=2"\'' in told(
        QUICK, "-m", "data.root=a=1,b=2"
    )
    assert value_of("data.root=a=1", sweep=True) == "a=1"
    lines = told(QUICK, "-m", "seed=1,2", "model/neck=fpn,nope", "model/bakbone=a,b")
    assert "model/neck: no option 'nope'" in lines
    assert "model/bakbone: no group 'model/bakbone'; did you mean 'model/backbone'?" in lines
    assert told(QUICK, "-m", "seed=1,2", "loss@model.head.roi.clsloss=Focal").startswith(
        "loss@model.head.roi.clsloss: there is no such slot"
    )
    assert told(QUICK, "-m", "--cfg", "job") == "--multirun and --cfg exclude each other"


def test_each_tool_has_its_own_choices():
    assert told("checkpoint=x.pt", QUICK, tool="evaluate") == (
        "experiment: there is nothing of 'experiment' to choose here; known: data, evaluator, tta, tta/merge"
    )
    assert "did you mean 'coco'" in told("checkpoint=x.pt", "data=coc", tool="explain")
    assert "no group 'tta/merg'; did you mean 'tta/merge'?" in told("checkpoint=x.pt", "tta/merg=WBF", tool="predict")


def test_configurations_of_the_users_own(tmp_path):
    for name, text in {
        "own/a": "x: 1", "experiment/mine": "# @package _global_\n# Mine.\ndefaults: [override /model: retinanet]\noptim: {lr: 1}",
        "experiment/wrong": "# @package _global_\ndefaults: [override /model/bakbone: ResNet]", "experiment/torn": "optim: {lr: [1",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    here = f"--config-dir={tmp_path}"
    assert read_command_line([here, "experiment=mine", "+own=a"], "train")[0] == [here, "experiment=mine", "+own=a"]
    assert read_command_line([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"], "train")
    assert told(here, "experiment=min") == "experiment: no option 'min'; did you mean 'mine'?"
    assert told(here, "experiment=wrong").endswith("No match in the defaults list.; did you mean 'model/backbone'?")
    assert f"{tmp_path}/experiment/torn.yaml, line 1: expected" in told(here, "experiment=torn")
    assert "experiment=mine  " in told(here)
    assert "  Mine." in told(here)


def test_train_alone_says_which_experiments_there_are(monkeypatch, capsys):
    output = call(train.main, monkeypatch, capsys, code=2)
    assert "choose an experiment: python tools/train.py experiment=NAME" in output
    names = [
        p.relative_to(config_dir() / "experiment").with_suffix("")
        for p in (config_dir() / "experiment").rglob("*.yaml")
    ]
    assert output.count("  experiment=") == len(names)
    assert "experiment=quickstart                          A small Faster R-CNN learns generated shapes" in output


def test_mistakes_end_with_exit_code_2(monkeypatch, capsys):
    for main, argument in ((train.main, "model/bakbone=ResNet"), (evaluate.main, "tta=flop"), (predict.main, "--x")):
        output = call(main, monkeypatch, capsys, argument, code=2)
        assert output.startswith("error: ")
        assert output.count("\n") == 1


def test_tab_completion_answers(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", "python tools/train.py experiment=qu")
    monkeypatch.setenv("COMP_POINT", "35")
    train.main()
    assert capfd.readouterr().out.strip() == "experiment=quickstart"


@pytest.mark.parametrize("module", [tool.module for tool in cli.TOOLS.values()])
def test_a_tools_module_is_the_tool(module):
    """``python -m detkit.app.NAME``, for an installation without ``tools/``."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    for module in [file, *file.parent.glob("__main__.py")]:
        assert module.read_text().endswith('if __name__ == "__main__":\n    main()\n'), module


@pytest.mark.slow
def test_a_module_runs_as_its_tool(tmp_path):
    command = [sys.executable, "-m", "detkit.app.use.predict", "checkpoint=nowhere.pt", "input=x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere.pt: there is no such file" in done.stderr


def test_a_sweep_under_torchrun_is_refused(monkeypatch):
    """One process of torchrun alone is like none."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = "-m: torchrun has started 2 processes, but a sweep starts its own: leave torchrun out"
    for arguments in ([QUICK, "-m", "seed=1,2"], ["--multirun", QUICK], [QUICK, "hydra.mode=MULTIRUN"]):
        assert told(*arguments) == words
    assert read_command_line([QUICK], "train")[0] == [QUICK]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert read_command_line([QUICK, "-m"], "train")[0] == ["-m", QUICK]


def test_the_command_lists_its_tools_and_names_the_nearest(capsys):
    cli.main([])
    output = capsys.readouterr().out
    assert all(f"detkit {tool} " in output for tool in cli.TOOLS)
    with pytest.raises(SystemExit) as ended:
        cli.main(["trian"])
    assert ended.value.code == 2
    assert "detkit trian: there is no such tool; did you mean 'train'?" in capsys.readouterr().err


def test_every_tool_has_a_command_and_a_file():
    files = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"benchmark"}
    assert {command(file) for file in files} == {f"python tools/{file}.py" for file in files}
    assert {"list" if file == "list_components" else file.replace("_", "-") for file in files} == set(cli.TOOLS)


def test_messages_name_the_command_that_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/detkit train"])
    assert command("show_config") == "detkit show-config"
    assert command("list_components") == "detkit list"


def test_ctrl_c_while_libraries_are_imported_is_quiet():
    """Torch's import takes seconds; a signal in it is no traceback, and waits for nothing."""
    code = (
        "import os, signal, sys, detkit.cli as cli\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.run('train')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\nstopped by Ctrl-C\n")


def test_ctrl_c_waits_and_then_comes_true():
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    before = signal.getsignal(signal.SIGINT)
    reached = []

    def work():
        with interrupt_waits():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, given)
