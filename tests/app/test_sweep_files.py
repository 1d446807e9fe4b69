"""The sweeps in configs/sweep: every file composes, and `compare` reads what a learning curve's jobs leave behind."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detkit.app.cli.components import load_components
from detkit.app.cli.paths import config_dir
from detkit.app.compare import tool
from detkit.app.compare.runs import read_systems
from detkit.app.sweep.batches import parse
from detkit.app.sweep.folder import SweepFolder
from detkit.app.sweep.plan import Job, compose_job, plan_jobs
from tests.app.test_compare import make_run

Plugins.instance()
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

load_components()
OmegaConf.register_new_resolver("or_custom", lambda name: name or "custom", replace=True)

FILES = sorted(Path(config_dir(), "sweep").glob("*.yaml"))
RECIPE = "experiment=faster_rcnn/bccd_mobilenetv2_fpn"

#: Of the study of what makes a recipe good, one factor each.
STUDY = [
    "batch", "colour", "ema", "flips", "frozen", "input_size", "levels", "losses", "mosaic", "precision", "rate_adamw",
    "rate_sgd",
]  # fmt: skip


def planned(sweep: str, *given: str, folder: Path = Path("somewhere")) -> list[tuple[Job, Callable[[], DictConfig]]]:
    """The jobs of ``sweep=...``, checked, as sweeper and launcher make them, and what composes each one's config."""
    loader = ConfigLoaderImpl(create_config_search_path(str(config_dir())))
    master = loader.load_configuration("train", [*given, f"sweep={sweep}"], run_mode=RunMode.MULTIRUN)
    batch = BasicSweeper.split_arguments(parse(master.hydra.sweeper.params, given, loader), None)[0]
    jobs = plan_jobs(batch, master, loader, folder)
    return [(job, functools.partial(compose_job, master, loader, job.overrides)) for job in jobs]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_job_of_every_file_composes(file: Path) -> None:
    """Of seed 0, on the recipe that the file's header names."""
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    named = re.findall(r"experiment=\S+", " ".join(header)) if file.stem != "scale" else []
    params = OmegaConf.load(file).hydra.sweeper.params
    assert params.seed == "0,1,2"
    jobs = planned(file.stem, *named[:1], "data.root=bccd", "seed=0")
    assert len({job.key for job, _ in jobs}) == len(jobs) > 1, "each is another configuration"


def test_a_list_on_the_command_line_replaces_that_of_the_file() -> None:
    """And no job is planned twice."""
    loader = ConfigLoaderImpl(create_config_search_path(str(config_dir())))
    lists = {"model/neck": "fpn,single_level", "seed": "0,1,2", "optim.lr": "1,2"}
    found = BasicSweeper.split_arguments(parse(lists, ["seed=3,4", "++optim.lr=3"], loader), None)[0]
    neck = ["model/neck=fpn"] * 2 + ["model/neck=single_level"] * 2
    assert [job[0] for job in found] == neck
    assert [sorted(job[1:]) for job in found] == [["++optim.lr=3", f"seed={seed}"] for seed in (3, 4, 3, 4)]


@pytest.mark.parametrize("name", STUDY)
def test_the_study_is_on_one_recipe_and_says_what_was_found_or_that_it_has_not_been_run(name: str) -> None:
    text = Path(config_dir(), "sweep", f"{name}.yaml").read_text().replace("\n# ", " ")
    found = re.search(r"AP 0\.\d+ ± 0\.\d+.*\[-?[\d.]+, \+?[\d.]+\]", text, re.DOTALL)
    assert ("Not run yet: no claim." in text) != bool(found), "a claim has its interval over seeds"
    assert re.search(r"(?i)a step costs|not equal in time", text), "whether the jobs cost the same"
    assert f"({name}.yaml)" in Path(config_dir(), "sweep", "README.md").read_text()
    assert name == "losses" or f"{RECIPE} sweep={name}" in text


def test_box_losses_compose_on_the_recipe_of_the_study() -> None:
    assert len(planned("losses", RECIPE, "data.root=bccd", "seed=0")) == 6


def test_compare_reads_the_jobs_of_a_learning_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs on a share, each seed with images of its own, are one system: their configurations differ by the seed."""
    lost = {0.125: 0.8, 0.25: 0.7, 0.5: 0.5, 1.0: 0.35}
    folder = SweepFolder(tmp_path / "sweep")
    jobs = planned("learning_curve", "experiment=quickstart", "seed=0,1", folder=folder.path)
    for job, compose in jobs:
        cfg = compose()
        make_run(job.folder, cfg.seed, "FPN", lost[cfg.data.subset.share])
        (job.folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        assert OmegaConf.to_container(cfg, resolve=True)["data"]["subset"]["seed"] == cfg.seed  # pyright: ignore
    folder.add(job for job, _ in jobs)
    folder.close()
    systems, missing = read_systems([folder.path])
    assert not missing
    assert [[run.seed for run in system.runs] for system in systems] == [[0, 1]] * 4
    tool.main([str(folder.path), "--samples", "100"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert re.search(
        r"Number of images: AP is 0\.\d+ of 0.125, 0\.\d+ of 0.25, 0\.\d+ of 0.5, 0\.\d+ of 1 of them", said
    )
