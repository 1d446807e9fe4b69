"""Record the graph of spatial operations while a network runs once, whatever its modules are called.

PyTorch hands every elementary operation that runs to a dispatch mode. For each tensor that comes from the image this
one keeps the node of the graph it stands for and where the image's axes are in it; :mod:`rules` knows what each
operation reads. One that it does not know is never taken for a pointwise one: its output counts as made from the whole
image, and a note names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from detkit.analysis.receptive_field.graph import Edge, Node
from detkit.analysis.receptive_field.layout import Layout, Lost, feature_map
from detkit.analysis.receptive_field.reach import IDENTITY, Reach


class Value(NamedTuple):
    """What a tensor stands for; ``layout`` None: made from the whole image, it has no place in it."""

    node: Node
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class Call:
    """One operation as it ran: ``arguments`` by the names of its schema, ``outputs`` the tensors that it made."""

    name: str
    arguments: Mapping[str, Any]
    outputs: Sequence[Tensor]
    recorder: Recorder

    def value(self, argument: str) -> Value | None:
        """What stands in ``argument``; None if it does not come from the image."""
        given = self.arguments.get(argument)
        return self.recorder.lookup(given) if isinstance(given, Tensor) else None

    def inputs(self) -> list[tuple[Tensor, Value]]:
        """All arguments that come from the image, those inside lists too."""
        tensors = [leaf for leaf in tree_leaves(dict(self.arguments)) if isinstance(leaf, Tensor)]
        found = [(tensor, self.recorder.lookup(tensor)) for tensor in tensors]
        return [(tensor, value) for tensor, value in found if value is not None]

    def join(self, parts: Sequence[tuple[Value, tuple[Reach, Reach] | None]], layout: Layout | None) -> Value:
        """The value made from ``parts``, each with what is read of it along y and x (None: all)."""
        return self.recorder.join(self.name, parts, layout)

    def whole(self) -> Value:
        """A value made from all of every input, without a place in the image."""
        return self.join([(value, None) for _, value in self.inputs()], None)

    def note(self, text: str) -> None:
        """Tell the user something about what was counted; ``{op}`` stands for this operation."""
        self.recorder.notes.setdefault(f"{self.name}: {text}")


Rule = Callable[[Call], Value | Sequence[Value] | None]


class Recorder(TorchDispatchMode):
    """The mode; ``notes`` are the sentences to show, in their order (a dict's keys)."""

    def __init__(self, image: Tensor, rules: Callable[[Any], Rule | None]) -> None:
        super().__init__()
        self.image = Node(0, "image")
        self.notes: dict[str, None] = {}
        self._rules = rules
        self._num_nodes = 1
        self._values = WeakTensorKeyDictionary()
        self._values[image] = Value(self.image, feature_map(image.shape))
        self._torn: dict[int, Tensor] = {}  # storages of which a part was overwritten; held, so that none is used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(self.lookup(tensor) for tensor in inputs):
            return func(*args, **kwargs)
        rule = self._rules(func)
        if rule is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        arguments = _by_name(func, args, kwargs)
        call = Call(func._schema.name.removeprefix("aten::"), arguments, outputs, self)
        values = _apply(rule, call)
        written = [arguments[a.name] for a in func._schema.arguments if a.is_write and a.name in arguments]
        for tensor, value in zip(outputs, values, strict=True):
            if value is not None:
                self._values[tensor] = value
        for tensor in (leaf for leaf in tree_leaves(written) if isinstance(leaf, Tensor)):
            self._write(call, tensor, values[0] if values else call.whole())
        return result

    def lookup(self, tensor: Tensor) -> Value | None:
        """What ``tensor`` stands for; None if it does not come from the image."""
        value = self._values.get(tensor)
        if value is None and self._torn and (source := self._torn.get(_storage(tensor))) is not None:
            written = self._values[source]
            return self.join("a write into a part of a tensor", [(written, None)], None)
        return value

    def join(self, op: str, parts: Sequence[tuple[Value, tuple[Reach, Reach] | None]], layout: Layout | None) -> Value:
        """See :meth:`Call.join`."""
        edges = tuple(dict.fromkeys(Edge(value.node, reach) for value, reach in parts))
        if len(edges) == 1 and edges[0].reach == (IDENTITY, IDENTITY):
            return Value(edges[0].source, layout)  # a pointwise operation on one map is no node of its own
        if len(edges) == 1 and all(value.layout is None for value, _ in parts):
            return Value(edges[0].source, None)
        node = Node(self._num_nodes, op, edges)
        self._num_nodes += 1
        return Value(node, layout)

    def _write(self, call: Call, tensor: Tensor, value: Value | None) -> None:
        """``tensor`` was overwritten: so were all others that share its memory."""
        if value is None:
            self._values.pop(tensor, None)
            return
        storage = _storage(tensor)
        others = [(t, v) for t, v in self._values.items() if t is not tensor and _storage(t) == storage]
        self._values[tensor] = value
        for other, old in others:
            same = None not in (old.layout, value.layout) and other.shape == tensor.shape and old.layout == value.layout
            reach = (IDENTITY, IDENTITY) if same else None
            self._values[other] = self.join(
                call.name, [(old, (IDENTITY, IDENTITY) if old.layout else None), (value, reach)], old.layout
            )
            if not same:
                call.note("writes into a part of a tensor, which then counts as made from the whole image")
        if tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes() and storage not in self._torn:
            self._torn[storage] = tensor
            if not others:
                call.note("writes into a part of a tensor, which then counts as made from the whole image")


def _apply(rule: Rule | None, call: Call) -> Sequence[Value | None]:
    """The values of the outputs; an operation without a rule, or that the rule cannot follow, reads everything."""
    try:
        if rule is None:
            raise Lost("an operation that this analysis does not know")
        found = rule(call)
    except Lost as lost:
        call.note(f"{lost}; what comes of it counts as made from the whole image")
        found = call.whole()
    if found is None or isinstance(found, Value):
        return [found] * len(call.outputs)
    return found


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    schema = func._schema.arguments
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    return defaults | {argument.name: value for argument, value in zip(schema, args, strict=False)} | dict(kwargs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
