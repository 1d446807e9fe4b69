"""``--help`` of every tool that Hydra composes for: what can be typed, and nothing that nobody should run."""

import importlib
import shlex

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from detkit.app.cli.command_line import help_wanted, read_command_line
from detkit.app.cli.components import load_components
from detkit.app.cli.paths import config_dir, search_path
from detkit.app.cli.usage import experiments
from detkit.app.inspect import components as list_components
from detkit.cli import TOOLS as KNOWN
from detkit.utils.commands import tool_name
from tests.app.tools import call

load_components()
TOOLS = (
    *("train", "evaluate", "predict", "audit", "explain", "calibrate", "labels", "add_class", "export", "publish"),
    *("inspect_data", "inspect_model", "convert", "recipe"),
)
NEED_AN_EXPERIMENT = ("train", "audit", "inspect_model")


@pytest.fixture(params=TOOLS)
def helped(request, monkeypatch, capsys):
    """A tool and what its help prints."""
    main = importlib.import_module(KNOWN[tool_name(request.param)].module).main
    return request.param, call(main, monkeypatch, capsys, "--help")


def test_help_shows_no_configuration(helped):
    tool, shown = helped
    assert f"usage: python tools/{tool}.py " in shown
    for sign in ("_target_", "???", "${", "_self_", "hydra"):
        assert sign not in shown.replace("hydra/launcher", "")
    assert ("  experiment=quickstart   " in shown) is (tool in NEED_AN_EXPERIMENT)
    assert ("model/neck: FPN, " in shown) is (tool in NEED_AN_EXPERIMENT)


def test_its_three_examples_compose(helped):
    tool, shown = helped
    lines = shown.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        python, file, *overrides = shlex.split(line)
        assert (python, file) == ("python", f"tools/{tool}.py")
        assert read_command_line(overrides, tool)[1] == []


def test_its_own_keys_have_their_defaults_and_remarks(monkeypatch, capsys):
    for tool, key, words in (
        ("evaluate", "checkpoint=...", "a best.pt or last.pt"),
        ("train", "resume.path=null", "resume=RUN_FOLDER or resume=auto goes on"),
        ("train", "device=auto", "auto, cpu, cuda, cuda:1"),
        ("audit", "num_pictures=12", "of objects, for each cause of a poor fit"),
    ):
        shown = help_wanted(["--help"], tool)
        (line,) = [line for line in shown.splitlines() if line.strip().startswith(key)]
        assert words in line


def test_help_knows_a_folder_of_ones_own(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n# Finds what I look for.\n")
    shown = help_wanted([f"--config-dir={tmp_path}", "--help"], "train")
    assert "experiment=mine " in shown
    assert "Finds what I look for." in shown
    assert help_wanted([f"--config-dir={tmp_path}", "experiment=mine"], "train") is None


@pytest.mark.parametrize("width", [80, 130])
def test_a_line_for_each_experiment_whatever_the_width(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    repository = ConfigLoaderImpl(search_path(None)).repository
    lines = experiments(repository)
    assert len(lines) == len(list((config_dir() / "experiment").rglob("*.yaml")))
    assert max(map(len, lines)) in range(width - 10, width - 1)


def test_components_take_the_width_of_the_terminal(monkeypatch, capsys):
    heights = []
    for width in (80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        list_components.main([])
        table = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("│", "┃"))]
        assert {len(line) for line in table} <= set(range(width + 1))
        assert any("loss@SLOT=NAME" in line for line in table)
        assert any("two_stage_modulated_deform_pool" in line for line in table)  # no name is broken
        heights.append(len(table))
    assert heights[1] < 0.8 * heights[0]
