"""Names and paths are text, whatever stands in them: never markup of the console, of HTML, or of a figure."""

import json
import re
from html.parser import HTMLParser

import numpy as np
from rich.console import Console

from detkit.app import train
from detkit.app.compare.figures import _name_rows
from detkit.app.compare.page import _breakable
from detkit.app.inspect import components as list_components
from detkit.app.inspect import data as inspect_data
from detkit.app.pages import html as page
from detkit.config import Count, Registry
from detkit.evaluation import CocoEvaluator
from detkit.evaluation.evaluator import EvaluatorState
from detkit.evaluation.results import Results
from detkit.structures import Categories, GroundTruth
from tests.app.tools import call

#: What rich takes for markup, an error, or an emoji; HTML; TeX.
NAMES = ("sign [/left]", "screw [m4]", "[bold]", ":car:", "a\\", "<b>&amp;", "$x^2$", "50 % _")


def shown(*things):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(*things)
    return captured.get()


def coco(folder, names=NAMES):
    """One image with one object of each class."""
    import cv2

    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "a [b].png"), np.full((64, 64, 3), 90, np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "a [b].png", "width": 64, "height": 64}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": k, "bbox": [1 + 5 * k, 1, 20, 30], "area": 600, "iscrowd": 0}
            for k in range(1, len(names) + 1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))


def test_a_run_with_such_classes_in_such_a_folder_comes_to_its_end(tmp_path, monkeypatch, capsys):
    coco(tmp_path / "data [/x]")
    monkeypatch.chdir(tmp_path)
    output = call(
        train.main, monkeypatch, capsys, "experiment=quickstart", "device=cpu", "threads=1", "trainer.steps=1", "data=coco",
        "data.root='data [/x]'", "data.loader.train.batch_size=1", "data.loader.train.num_workers=0",
        "data.loader.val.num_workers=0", "hydra.run.dir='run [/x]'",
    )  # fmt: skip
    for name in NAMES:
        assert re.search(rf"│ {re.escape(name)} +│", output), name
    assert f"run folder: {tmp_path / 'run [/x]'}" in output.replace("\n", "")
    assert (tmp_path / "run [/x]" / "result.json").is_file()
    assert (tmp_path / "run [/x]" / "detections.png").is_file()


def test_inspect_data_shows_such_names(tmp_path, monkeypatch, capsys):
    coco(tmp_path / "data [/x]")
    monkeypatch.chdir(tmp_path)
    output = call(
        inspect_data.main, monkeypatch, capsys, "data=coco", "data.root='data [/x]'", "hydra.run.dir='out [/x]'"
    )
    for name in NAMES:
        assert re.search(rf"│ {re.escape(name)} +│", output), name
    assert str(tmp_path / "out [/x]") in output.replace("\n", "")


def test_the_table_by_class():
    categories = Categories(NAMES, tuple(range(1, len(NAMES) + 1)))
    n = len(NAMES)
    truth = GroundTruth(
        1, "a <b> [/c].png", (64, 64), np.full((n, 4), 10.0), np.arange(n), np.full(n, 100.0), np.zeros(n, bool),
        np.arange(n) + 1,
    )  # fmt: skip
    evaluator = CocoEvaluator(categories=categories, truths=[truth])
    evaluator.merge([EvaluatorState(np.array([1]), Results.empty())])
    for name in NAMES:
        assert f" {name} " in shown(evaluator.compute().per_class_table()), name


class Texts(HTMLParser):
    """The texts of a page, without its marks."""

    def __init__(self, html):
        super().__init__()
        self.texts = []
        self.feed(html)

    def handle_data(self, data):
        self.texts.append(data)


def test_pages_show_names_as_they_stand():
    line = ([0.0, 1.0], [1.0, 0.0])
    counts = np.ones((len(NAMES), len(NAMES)), int)
    parts = {
        "table": page.table(NAMES, [NAMES]),
        "matrix": page.matrix(counts, NAMES, NAMES),
        "curves": page.curves(dict.fromkeys(NAMES, line), "x", "y"),
        "bars": page.bars([page.Bar(name, 1, "1") for name in NAMES]),
        "legend": page.legend(dict.fromkeys(NAMES, (0, 0, 0))),
        "advice": page.advice([(name, "") for name in NAMES]),
        "paragraphs": page.paragraphs(*NAMES),
        "text that is no piece": page.pair(*(page.section("", name) for name in NAMES)),
        "tiles": page.tiles(dict.fromkeys(NAMES, "1")),
        "pictures": page.pictures([(np.zeros((4, 4, 3), np.uint8), name, "") for name in NAMES]),
        "sections": page.page("", "", [page.section(name, note=name) for name in NAMES]),
    }
    for kind, html in parts.items():
        assert set(NAMES) <= set(Texts(html).texts), kind


def test_names_may_be_broken_in_the_comparison_and_stay_what_they_are():
    for name in NAMES:
        assert "".join(Texts(_breakable(name)).texts) == name
    assert _breakable("model/neck=<b>") == "model/<wbr>neck=&lt;b&gt;"


def test_figures_show_a_dollar_as_it_stands():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    _name_rows(axis, ["loss=$x_1$"])
    assert not axis.get_yticklabels()[0].get_parse_math()


def test_types_in_brackets_are_shown_whole():
    class Part:
        """Something."""

        def __init__(
            self, *, sizes: tuple[int, ...] = (), names: dict[str, list[int]] | None = None, top: Count = 1
        ): ...

    output = shown(list_components.options(Part, Registry.kinds()["neck"]))
    for text in ("tuple[int, ...]", "dict[str, list[int]] | None", "│ int "):
        assert text in output
