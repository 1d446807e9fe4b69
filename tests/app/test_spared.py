"""What is left out of Hydra's compositions changes none."""

import copy

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from omegaconf import OmegaConf

from detkit.app.cli import spared
from detkit.app.cli.components import load_components
from detkit.app.cli.paths import search_path

EXPERIMENTS = ["quickstart", "faster_rcnn/shapes_large_tiles", "flow/shapes", "mtcnn/facemask"]


def as_hydra_has_it(monkeypatch):
    def copied(self, delegate):
        self.delegate = copy.deepcopy(delegate)
        self.cache = {}

    monkeypatch.setattr(defaults_list, "_create_interpolation_map", spared._choices_and_defaults)
    monkeypatch.setattr(CachingConfigRepository, "__init__", copied)


def composed(name, *overrides, folder=None):
    cfg = ConfigLoaderImpl(search_path(folder)).load_configuration(name, list(overrides), RunMode.RUN)
    return OmegaConf.to_container(cfg, resolve=False)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_compositions_are_hydras(experiment, monkeypatch):
    load_components()
    ours = composed("train", f"experiment={experiment}", "optim.lr=0.5")
    as_hydra_has_it(monkeypatch)
    assert ours == composed("train", f"experiment={experiment}", "optim.lr=0.5")


def test_an_option_may_be_named_by_another_choice(tmp_path, monkeypatch):
    """The one thing that what is left out is for."""
    load_components()
    files = {
        "root.yaml": "defaults:\n- place: home\n- way@by: ${place}\n- extra_${place}\n",
        "place/home.yaml": "is: home\n",
        "way/home.yaml": "long: 3\n",
        "extra_home.yaml": "# @package _global_\nmore: 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    ours = composed("root", folder=str(tmp_path))
    assert (ours["place"], ours["more"]) == ({"is": "home"}, 1)
    as_hydra_has_it(monkeypatch)
    assert ours == composed("root", folder=str(tmp_path))


def test_the_store_is_not_copied_and_not_changed():
    load_components()
    before = copy.deepcopy(ConfigStore.instance().repo)
    loader = ConfigLoaderImpl(search_path(None))
    loader.load_configuration("train", ["experiment=quickstart", "optim.lr=0.5"], RunMode.RUN)
    sources = CachingConfigRepository(loader.repository).get_sources()
    assert [s.store is ConfigStore.instance() for s in sources if hasattr(s, "store")] == [True]
    assert ConfigStore.instance().repo == before
