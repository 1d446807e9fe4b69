"""Registering, resolving, checking and building, and the exact words of every mistake."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from detkit.config import ConfigError, Count, Registry, Share, build, load_plugins, validate
from detkit.config.registry import resolve

GADGETS = Registry("gadget", "test/gadget")


class Gadget:
    """The interface."""


@GADGETS
class Spring(Gadget):
    """A spring."""

    def __init__(self, *, stiffness: float = 2.0, coils: int | None = None) -> None:
        if stiffness <= 0:
            raise ValueError(f"stiffness must be positive, not {stiffness}")
        self.stiffness = stiffness
        self.coils = coils


@GADGETS
class Machine(Gadget):
    """A machine of springs."""

    def __init__(
        self,
        *,
        mode: Literal["fast", "safe"] = "fast",
        size: tuple[int, int] = (3, 4),
        spring: Gadget | None = None,
        parts: Sequence[Gadget] = (),
        named: Mapping[str, Gadget] | None = None,
        make: Callable[..., Gadget] | None = None,
        table: tuple[tuple[float, ...], ...] = ((1.0, 2.0),),
        flag: bool = False,
        num_classes: int,
    ) -> None:
        self.mode, self.size, self.spring, self.parts = mode, size, spring, parts
        self.named, self.make, self.table, self.num_classes = named, make, table, num_classes
        self.flag = flag


@GADGETS
class Picky(Gadget):
    """Refuses what is small."""

    def __init__(self, *, size: int) -> None:
        if size < 0:
            raise ValueError(f"size must not be negative: {size}")
        self.size = size


@GADGETS
class Bounded(Gadget):
    """Numbers with bounds."""

    def __init__(
        self, *, num: Count, share: Share = 0.5, pair: tuple[Count, Count] = (1, 1), none: Count | None = None
    ) -> None:
        self.num, self.share, self.pair, self.none = num, share, pair, none


@dataclasses.dataclass
class Root:
    """Sections of a test configuration."""

    machine: Gadget
    seed: int = 0


def errors_of(node, schema=None):
    with pytest.raises(ConfigError) as caught:
        validate(node, schema)
    return list(caught.value.errors)


def test_a_class_is_a_hydra_option_with_its_defaults():
    node = ConfigStore.instance().load("test/gadget/Machine.yaml").node
    assert OmegaConf.to_container(node) == {
        "_target_": "Machine", "mode": "fast", "size": [3, 4], "spring": None, "parts": [], "named": None, "make": None,
        "table": [[1.0, 2.0]], "flag": False,
    }  # fmt: skip


def test_build_converts_nests_and_passes_run_time_values_down():
    machine = build(
        {
            "_target_": "Machine", "size": [5, 6], "spring": {"_target_": "Spring", "stiffness": 7},
            "parts": [{"_target_": "Spring"}, {"_target_": "Machine"}], "named": {"a": {"_target_": "Spring", "coils": 3}},
            "make": {"_target_": "Spring", "_partial_": True, "coils": 9}, "table": [[1, 2], [3]],
        },
        num_classes=11,
    )  # fmt: skip
    assert machine.size == (5, 6)
    assert isinstance(machine.spring.stiffness, float)
    assert machine.parts[1].num_classes == machine.num_classes == 11
    assert machine.named["a"].coils == 3
    assert isinstance(machine.make, functools.partial)
    assert machine.make(stiffness=3.0).coils == 9
    assert machine.table == ((1.0, 2.0), (3.0,))


def test_every_mistake_is_told_at_once_with_its_key_and_the_nearest_name():
    node = {
        "machine": {
            "_target_": "Machine", "mod": "fast", "mode": "quick", "size": [1, 2, 3], "flag": "yes", "num_classes": 3,
            "spring": {"_target_": "Sprin"}, "parts": [{"_target_": "Spring", "stifness": 1.0}],
            "make": {"_target_": "Spring", "coils": "many"},
        },
        "sed": 1,
        "seed": "7",
    }  # fmt: skip
    assert errors_of(node, Root) == [
        "machine.mod: no argument 'mod'; did you mean 'mode'?",
        "machine.mode: must be one of 'fast', 'safe', not 'quick'",
        "machine.size: must be a list of 2: int, int, not [1, 2, 3]",
        "machine.flag: must be bool, not 'yes'",
        "machine.num_classes: arrives at run time from the data and the other parts, never from YAML",
        "machine.spring._target_: no component is called 'Sprin' (a class of your own is found by DETKIT_PLUGINS=module); did you mean 'Spring'?",
        "machine.parts[0].stifness: no argument 'stifness'; did you mean 'stiffness'?",
        "machine.make: Spring does not fit here; it must be a component with _partial_: true or null",
        "machine.make.coils: must be int or null, not 'many'",
        "sed: no key 'sed'; did you mean 'seed'?",
        "seed: must be int, not '7'",
    ]


def test_missing_values():
    assert errors_of({"seed": 1}, Root) == ["machine: missing (a Gadget)"]
    assert errors_of({"machine": "???"}, Root) == [
        "machine: needs a value (a Gadget): +test/gadget@machine=Bounded|Machine|Picky|Spring"
    ]
    assert errors_of({"machine": {"_target_": "Machine", "size": "???"}}, Root) == [
        "machine.size: needs a value (a list of 2: int, int)"
    ]


def test_a_component_of_another_kind_does_not_fit():
    node = {"machine": {"_target_": "torch.optim.SGD", "params": None}}
    assert errors_of(node, Root) == ["machine: SGD does not fit here; it must be a Gadget"]


def test_no_guessing_of_types():
    for value, problem in (("3", "'3'"), (3.5, "3.5"), (True, "True")):
        assert errors_of({"_target_": "Spring", "coils": value}) == [f"coils: must be int or null, not {problem}"]
    validate({"_target_": "Spring", "stiffness": 3})  # a whole number is a float
    validate({"_target_": "Spring", "stiffness": 1e-4})


def test_constructor_refusals_carry_the_key():
    with pytest.raises(ConfigError, match=r"^spring: Spring: stiffness must be positive, not -1\.0$"):
        build({"_target_": "Machine", "spring": {"_target_": "Spring", "stiffness": -1}}, num_classes=1)


def test_interpolation_to_nowhere_names_the_key():
    with pytest.raises(ConfigError, match=r"^machine: Interpolation key 'nowhere' not found"):
        validate(OmegaConf.create({"machine": "${nowhere}"}), Root)


def test_allowed_third_party_classes():
    assert resolve("torch.optim.AdamW") is torch.optim.AdamW
    validate({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1})
    assert errors_of({"_target_": "torch.optim.SGD", "_partial_": True, "larning_rate": 0.1})[0].startswith(
        "larning_rate: no argument 'larning_rate'"
    )


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "logging.os.system", "torch.load", "functools.partial", "builtins.eval", "subprocess.Popen",
        "torch.optim.optimizer.functools.partial", "albumentations.core.utils.Path", "torch.nn.modules.module.functools.partial",
        "torch.optim.lr_scheduler.partial", "importlib.import_module", "pickle.loads",
    ],
)  # fmt: skip
def test_nothing_else_can_be_named(target):
    with pytest.raises(ConfigError):
        build({"_target_": target})


def test_contract_of_a_registered_class():
    class Positional:
        """Doc."""

        def __init__(self, size: int) -> None: ...

    class Swallows:
        """Doc."""

        def __init__(self, **kwargs: int) -> None: ...

    class Untyped:
        """Doc."""

        def __init__(self, *, size=3) -> None: ...

    class Undocumented:
        def __init__(self, *, size: int = 3) -> None: ...

    class Odd:
        """Doc."""

        def __init__(self, *, size: object = object()) -> None: ...

    for cls, words in (
        (Positional, "'size' must be keyword-only"), (Swallows, r"'kwargs' must be keyword-only"),
        (Untyped, "'size' needs an annotation"), (Undocumented, "needs a docstring"), (Odd, "cannot stand in YAML"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=words):
            GADGETS(cls)


def test_a_name_is_given_once():
    other = type("Spring", (), {"__doc__": "Another spring.", "__module__": "elsewhere"})
    with pytest.raises(TypeError, match=r"elsewhere\.Spring: .*test_registry has registered that name already"):
        GADGETS(other)


def test_plugins_join_and_a_broken_one_is_named(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(
        "from detkit.config import NECKS\n@NECKS\nclass Rubber:\n    '''A neck.'''\n"
        "    def __init__(self, *, width: int = 3) -> None:\n        self.width = width\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DETKIT_PLUGINS", "my_parts")
    load_plugins()
    assert build({"_target_": "Rubber", "width": 5}).width == 5
    monkeypatch.setenv("DETKIT_PLUGINS", "no_such_plugin")
    with pytest.raises(ConfigError, match="plugin 'no_such_plugin' cannot be imported: ModuleNotFoundError"):
        load_plugins()


def test_a_factory_that_refuses_its_values_names_their_key():
    """At the time of the call: then it may be that data, not the configuration, brings the last of them."""
    make = build({"_target_": "Picky", "_partial_": True, "size": -1}, key="a.picky")
    with pytest.raises(ConfigError, match=r"a\.picky: Picky: size must not be negative: -1"):
        make()
    assert make(size=2).size == 2
    assert copy.deepcopy(make)(size=3).size == 3


@dataclasses.dataclass
class Drawer:
    """A section of components, of which nothing but a mapping can be made."""

    tools: Mapping[str, Gadget | None]


@dataclasses.dataclass
class Cupboard:
    """A section with one of them."""

    drawer: Drawer
    other: Drawer | None = None


@pytest.mark.parametrize("value", [5, "Spring", [1]])
def test_what_stands_in_place_of_a_section_is_told(value):
    tools = {"drawer": {"tools": {"a": {"_target_": "Spring"}}}, "other": None}
    validate(tools, Cupboard)
    assert errors_of({"drawer": value}, Cupboard) == [f"drawer: must be a Drawer, not {value!r}"]
    assert errors_of({**tools, "other": value}, Cupboard) == [f"other: must be a Drawer or null, not {value!r}"]


def test_bounds_of_numbers_are_told_with_everything_else():
    node = {"_target_": "Bounded", "num": 0, "share": 1.5, "pair": [1, 0], "none": None}
    with pytest.raises(ConfigError) as caught:
        validate(node)
    assert caught.value.errors == (
        "num: must be int of 1 or more, not 0",
        "share: must be float from 0 to 1, not 1.5",
        "pair: must be a list of 2: int of 1 or more, int of 1 or more, not [1, 0]",
    )
    bounded = build({"_target_": "Bounded", "num": 1, "share": 1, "pair": [2, 3]})
    assert (bounded.num, bounded.share, bounded.pair) == (1, 1.0, (2, 3))
    with pytest.raises(ConfigError, match="none: must be int of 1 or more or null, not -1"):
        validate({"_target_": "Bounded", "num": 1, "none": -1})
