"""The import law, and what importing detkit must not do."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "detkit"

#: What each room may import. Rooms on the right of the law know those on the left, never the other way.
LEVELS = [
    {"config", "utils"},
    {"structures"},
    {"ops", "pictures"},
    {"losses", "matching"},
    {"models", "data", "evaluation"},
    {"engine", "analysis"},
    {"app"},
]
LEVEL = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
STRANGERS = [
    {"models", "data", "evaluation"},
    {"engine", "analysis"},
]  # of one level, and yet they must not know each other


def imports():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                yield path, node.module


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def test_every_room_has_its_level():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms == set(LEVEL)


def test_imports_point_left():
    wrong = []
    for path, module in imports():
        parts = module.split(".")
        room = room_of(path)
        if parts[0] != "detkit" or len(parts) < 2 or room is None:
            continue
        other = parts[1]
        stranger = any(room != other and {room, other} <= group for group in STRANGERS)
        if LEVEL[other] > LEVEL[room] or stranger:
            wrong.append(f"{path.relative_to(PACKAGE.parent)} imports {module}")
    assert not wrong


#: The folders of ``app``, each of which may know those before it; last the tools that stand alone.
SUBJECTS = [
    {"assemble"}, {"pages"}, {"cli"}, {"run"}, {"sweep"},
    {"compare", "use", "audit", "explain", "inspect", "calibrate", "add_class", "export", "publish"},
    {"train", "import_weights"}, {"labels", "library", "convert", "recipe"},
]  # fmt: skip
SUBJECT = {name: i for i, names in enumerate(SUBJECTS) for name in names}


def test_the_folders_of_the_tools_run_one_way():
    there = {p.stem for p in (PACKAGE / "app").iterdir() if p.name not in ("__pycache__", "__init__.py")}
    assert there == set(SUBJECT)
    wrong = []
    for path, module in imports():
        here, other = path.relative_to(PACKAGE).parts, module.split(".")
        if here[0] != "app" or len(here) < 2 or other[:2] != ["detkit", "app"] or len(other) < 3:
            continue
        subject = Path(here[1]).stem
        if subject != other[2] and SUBJECT[other[2]] >= SUBJECT[subject]:
            wrong.append(f"{'/'.join(here)} imports {module}")
    assert not wrong


def module_graph():
    """The modules of detkit, and which of them each imports, anywhere in its file."""
    names = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p
             for p in PACKAGE.rglob("*.py")}  # fmt: skip
    graph = {}
    for name, path in names.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & names.keys()
            elif isinstance(node, ast.ImportFrom) and node.module in names:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= (whole & names.keys()) or {node.module}
    return graph


def circles(graph):
    """What is left when everything is taken away, again and again, that knows nothing of what is left."""
    left = {name: others - {name} for name, others in graph.items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    return sorted(left)


def test_no_import_goes_round_in_a_circle():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"e"}, "e": set()}) == ["a", "b", "c"], "and what needs it"
    graph = module_graph()
    graph["detkit"] -= {"detkit.app.library"}  # the door from Python, opened when it is used
    assert not circles(graph)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("hydra", {"config", "app"}), ("omegaconf", {"config", "app"}),
        ("albumentations", {"data"}), ("msgspec", {"data"}), ("pycocotools", {"evaluation"}), ("timm", {"models"}),
        ("jinja2", {"app"}), ("filelock", {"utils"}), ("psutil", {"app"}),
    ],
)  # fmt: skip
def test_libraries_are_known_where_they_belong(library, allowed):
    rooms = {room_of(path) for path, module in imports() if module.split(".")[0] == library}
    assert rooms <= allowed


def test_only_the_adapter_knows_albumentations():
    files = {path.name for path, module in imports() if module.split(".")[0] == "albumentations"}
    assert files == {"albumentations.py"}


#: Rooms in which everything public says what it is: all of them.
DOCUMENTED = sorted(LEVEL)


def undocumented(room):
    """Public classes, functions and methods of ``room`` without a docstring; a method may have its base class's."""
    for path in sorted((PACKAGE / room).rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            yield name
        module = importlib.import_module(name)
        for node in tree.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                yield f"{name}.{node.name}"
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if not isinstance(part, ast.FunctionDef) or part.name.startswith("_"):
                    continue
                own = getattr(getattr(module, node.name), part.name)
                if "overload" not in {getattr(d, "id", "") for d in part.decorator_list} and not inspect.getdoc(own):
                    yield f"{name}.{node.name}.{part.name}"


@pytest.mark.parametrize("room", DOCUMENTED)
def test_everything_public_says_what_it_is(room):
    assert not list(undocumented(room))


def test_import_starts_no_cuda_and_no_network_library():
    code = (
        "import sys, torch, detkit.app.cli.components; "
        "assert not torch.cuda.is_initialized(); "
        "print([m for m in ('albumentations', 'timm', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == "[]", "heavy libraries are imported where they are used"
