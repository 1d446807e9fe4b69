"""Comparison of run folders, which are made by hand here: tables, verdicts, figures and the page."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from detkit.app.compare import runs as runs_module
from detkit.app.compare import tool
from detkit.app.run.folder import RunFolder
from detkit.config import ConfigError
from detkit.evaluation import ScoredSet
from detkit.evaluation.backends import run_pycocotools
from detkit.evaluation.columns import detection_columns, truth_columns
from detkit.evaluation.summary import COCO_SETTINGS, summarize
from detkit.evaluation.synthetic import synthetic_set

LIMITS = (1, 10, 100)
MADE = synthetic_set(num_images=40, num_categories=2, detections_per_image=12, size=200)


def make_run(folder: Path, seed: int, neck: str, lost: float, data: Any = MADE, finished: bool = True) -> Path:
    """A run whose detector misses the share ``lost`` of what the synthetic one finds."""
    folder.mkdir(parents=True)
    truth = truth_columns(data.truths, data.categories)
    rng = np.random.default_rng(100 * seed + len(neck))
    results = data.results.select(rng.random(len(data.results)) > lost)
    scored = ScoredSet(truth, detection_columns(results, truth), data.categories.names, LIMITS)
    scored.save(folder / "detections.npz")
    metrics = summarize(run_pycocotools(truth, scored.found, LIMITS), scored.definitions)
    (folder / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
    config = {"seed": seed, "model": {"neck": {"_target_": neck, f"size_of_{neck}": 3}}, "trainer": {"steps": 4}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [f"{s},train,loss,{4 / s}\n{s},train,time/images_per_second,{10 * s}\n" for s in range(1, 5)]
    (folder / "metrics.csv").write_text("step,split,name,value\n" + "".join(rows) + f"4,val,AP,{metrics['AP']}\n")
    result = {"best": metrics["AP"], "monitor": "AP", "best_step": 4, "parameters": 2e6, "flops": 3e9, "memory": 2**30}
    if finished:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    kinds = {"FPN": 0.0, "Worse": 0.6, "Same": 0.01}
    return [
        make_run(tmp_path / f"{neck}{seed}", seed, neck, lost + 0.01 * seed)
        for neck, lost in kinds.items()
        for seed in (0, 1, 2)
    ]


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "table.csv").open() as file:
        return {row["system"]: row for row in csv.DictReader(file)}


def test_seeds_are_one_system_and_differences_have_a_verdict(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main([*map(str, runs), "--output", str(tmp_path / "out"), "--samples", "200"])
    rows = table(tmp_path / "out")
    assert list(rows) == ["model.neck=FPN", "model.neck=Worse", "model.neck=Same"]
    ap = [json.loads((run / "evaluation.json").read_text())["metrics"]["AP"] for run in runs[:3]]
    first = rows["model.neck=FPN"]
    assert float(first["AP_mean"]) == pytest.approx(np.mean(ap), abs=1e-15)
    assert float(first["AP_std"]) == pytest.approx(np.std(ap, ddof=1), abs=1e-15)
    assert (first["seeds"], first["AP_difference"]) == ("0 1 2", "")
    assert float(first["images_per_second"]) == 30, "the first step warms up"
    worse, same = rows["model.neck=Worse"], rows["model.neck=Same"]
    assert (worse["difference_shown"], worse["seeds_vary"]) == ("True", "True")
    assert float(worse["low"]) < float(worse["AP_difference"]) < float(worse["high"]) < 0
    assert same["difference_shown"] == "False"
    markdown = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert markdown[0].startswith("| system | seeds | AP | AP50 | AP75 | AP difference | 95% interval | parameters")
    assert "no difference shown" in markdown[4]
    assert "no difference shown" not in markdown[3]
    assert "| 2.00 M | 3.00 | 30.0 | 1024 MiB |" in markdown[2]
    output = capsys.readouterr().out
    assert "the variance over the seeds of both systems enters" in output
    assert "one seed only" not in output
    assert "images alone" not in output + markdown[3]


def test_runs_of_one_experiment_each_are_named_by_it(runs: list[Path], tmp_path: Path) -> None:
    def told(*commands: list[str]) -> list[str]:
        for i, run in enumerate(runs):
            manifest = {"command": ["tools/train.py", *commands[i // 3], "seed=0"]}
            (run / "manifest.json").write_text(json.dumps(manifest))
        return [system.name for system in runs_module.read_systems(runs)[0]]

    by_key = ["model.neck=FPN", "model.neck=Worse", "model.neck=Same"]
    three = ["experiment=scale/fpn"], ["experiment=worse"], ["experiment=old", "experiment=same"]
    assert told(*three) == ["experiment=scale/fpn", "experiment=worse", "experiment=same"]
    assert told(["experiment=a"], ["experiment=a"], ["experiment=b"]) == by_key, "one recipe, changed"
    assert told(["experiment=a"], [], ["experiment=b"]) == by_key


def make_share(folder: Path, seed: int, share: float, lost: float, data: Any = MADE) -> Path:
    """A run on a share of the images that misses the share ``lost`` of what there is to find."""
    run = make_run(folder, seed, "FPN", lost, data)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = {"subset": {"share": share, "seed": "${seed}"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_shares_of_the_images_are_read_as_a_learning_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = {0.25: 0.7, 0.5: 0.5, 1.0: 0.35}
    runs = [
        make_share(tmp_path / f"{share}_{seed}", seed, share, lost) for share, lost in shares.items() for seed in (0, 1)
    ]
    tool.main([*map(str, runs), "--output", str(tmp_path / "out"), "--samples", "100"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    means = [float(row["AP_mean"]) for row in table(tmp_path / "out").values()]
    told = ", ".join(f"{mean:.3f} of {share:g}" for mean, share in zip(means, shares, strict=True))
    assert f"Number of images: AP is {told} of them" in said
    assert "twice as many images would bring +0." in said
    assert (tmp_path / "out" / "index.html").read_text().count('src="data:image/png;base64,') == 3
    two = [run for run in runs if "0.5" not in run.name]
    tool.main([*map(str, two), "--output", str(tmp_path / "two"), "--samples", "100"])
    assert "Number of images" not in capsys.readouterr().out, "two points lie on any line"


def test_a_metric_without_any_object_has_no_learning_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = MADE._replace(truths=[replace(t, area=np.full(len(t), 100.0)) for t in MADE.truths])
    runs = [make_share(tmp_path / f"{share}", 0, share, 0.5, data) for share in (0.25, 0.5, 1.0)]
    tool.main([*map(str, runs), "--output", str(tmp_path / "out"), "--samples", "100", "--metric", "APl"])
    output = capsys.readouterr().out
    assert "Number of images" not in output
    assert "nan" not in output


def test_the_page_needs_nothing_else(runs: list[Path], tmp_path: Path) -> None:
    tool.main([*map(str, runs[:6]), "--output", str(tmp_path / "out"), "--samples", "100"])
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in re.sub("base64,[A-Za-z0-9+/=]+", "", page)
    assert "model.neck=Worse" in page.replace("<wbr>", "")
    for name in ("differences.png", "learning_curves.png"):
        picture = cv2.imread(str(tmp_path / "out" / name))
        assert picture.shape[1] > 800
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20, "something is drawn"


def test_the_baseline_and_the_metric_are_chosen(runs: list[Path], tmp_path: Path) -> None:
    arguments = [*map(str, runs[:6]), "--output", str(tmp_path / "out"), "--samples", "100"]
    tool.main([*arguments, "--baseline", "model.neck=Worse", "--metric", "AR100"])
    row = table(tmp_path / "out")["model.neck=FPN"]
    assert float(row["AR100_difference"]) > 0
    with pytest.raises(ConfigError, match=r"no system 'model.neck=Wors'; did you mean 'model.neck=Worse'\?"):
        tool.compare(runs[:6], tmp_path / "out", "model.neck=Wors", "AP", 100, 0)
    with pytest.raises(ValueError, match="no metric 'AP60'; there are AP, AP50"):
        tool.compare(runs[:6], tmp_path / "out", None, "AP60", 100, 0)


def test_numbers_beside_the_scores_get_columns(runs: list[Path], tmp_path: Path) -> None:
    """-1 is one like another there, and what is not finite, which JSON cannot say, is not defined."""
    for run, bend in zip(runs[:6], (0.25, -1.0, 0.5, 1.0, 1.0, None), strict=True):
        stored = json.loads((run / "evaluation.json").read_text())
        stored["metrics"]["stat/bend"] = bend
        (run / "evaluation.json").write_text(json.dumps(stored))
    arguments = [*map(str, runs[:6]), "--output", str(tmp_path / "out"), "--samples", "100"]
    tool.main([*arguments, "--show", "stat/bend", "--show", "APs"])
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert "AP75 | stat/bend | APs | AP difference" in lines[0]
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ")[5] for row in lines[2:]}
    assert cells["model.neck=FPN"] == "-0.083 ± 0.804"
    assert cells["model.neck=Worse"] == "-"
    with pytest.raises(ConfigError, match=r"no metric 'stat/bent' in .*; there are .*, stat/bend"):
        tool.compare(runs[:6], tmp_path / "out", None, "AP", 100, 0, ["stat/bent"])


def test_thresholds_of_ones_own_take_no_column_for_granted(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"{neck}0", 0, neck, lost) for neck, lost in (("FPN", 0.0), ("Worse", 0.6))]
    for folder in folders:
        scored = ScoredSet.load(folder / "detections.npz")
        settings = COCO_SETTINGS._replace(iou_thresholds=(0.5,))
        replace(scored, settings=settings).save(folder / "detections.npz")
        stored = json.loads((folder / "evaluation.json").read_text())
        del stored["metrics"]["AP75"]
        (folder / "evaluation.json").write_text(json.dumps(stored))
    tool.main([*map(str, folders), "--output", str(tmp_path / "out"), "--samples", "100"])
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert markdown.startswith("| system | seeds | AP | AP50 | AP difference |")
    for asked in ({"metric": "AP75"}, {"metric": "AP", "more": ["AP75"]}):
        with pytest.raises(ValueError, match="no metric 'AP75'"):
            tool.compare(folders, tmp_path / "out", None, num_samples=100, seed=0, **asked)


def test_systems_of_one_class_are_told_apart_by_what_differs_between_them() -> None:
    plain, se, other = (
        {"model": {"neck": {"_target_": target, "attention": attention, **more}}}
        for target, attention, more in (("FPN", None, {}), ("FPN", "SE", {}), ("Single", None, {"level": 3}))
    )
    assert runs_module._differing_keys([plain, se]) == ["model.neck.attention"]
    assert runs_module._differing_keys([plain, other]) == ["model.neck._target_"]
    assert runs_module._differing_keys([plain, other, se]) == ["model.neck._target_", "model.neck.attention"]


def test_one_seed_each_is_said(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main([str(runs[0]), str(runs[3]), "--output", str(tmp_path / "out"), "--samples", "100"])
    assert "where a system has one seed only, the noise of training is not in the interval" in capsys.readouterr().out
    assert table(tmp_path / "out")["model.neck=Worse"]["seeds_vary"] == "False"
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "±" not in markdown
    assert "] (images alone) |" in markdown


def test_runs_of_other_code_or_data_are_told(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*map(str, runs[:6]), "--output", str(tmp_path / "out"), "--samples", "100"]
    for i, run in enumerate(runs[:6]):
        manifest = {"git": {"revision": "abc" if i < 4 else "def"}, "data": {"train": "1"}, "time": str(i)}
        (run / "manifest.json").write_text(json.dumps(manifest))
    tool.main(arguments)
    assert "Not all runs were made alike, by value how many: git.revision (abc: 4, def: 2)." in capsys.readouterr().out
    for i, run in enumerate(runs[:6]):
        (run / "manifest.json").write_text(json.dumps({"data": {"train": str(i // 5)}, "versions": {"torch": "2"}}))
    tool.main(arguments)
    assert "Not all runs were made alike, by value how many: data.train (0: 5, 1: 1)." in capsys.readouterr().out
    (runs[5] / "manifest.json").write_text((runs[0] / "manifest.json").read_text())
    tool.main(arguments)
    assert "made alike" not in capsys.readouterr().out


def test_numbers_of_rare_classes_are_compared_where_these_are_the_same(tmp_path: Path) -> None:
    def run(name: str, *frequency: str) -> Path:
        folder = make_run(tmp_path / name, 0, name, 0.0)
        scored = replace(ScoredSet.load(folder / "detections.npz"), frequency=frequency)
        scored.save(folder / "detections.npz")
        metrics = summarize(run_pycocotools(scored.truth, scored.found, LIMITS), scored.definitions)
        (folder / "evaluation.json").write_text(json.dumps({"metrics": metrics}))
        return folder

    one, same = run("One", "rare", "frequent"), run("Same", "rare", "frequent")
    other = run("Other", "frequent", "rare")
    first, row = tool.compare([one, same], tmp_path / "out", None, "APr", 100, 0)
    assert row.difference is not None
    assert row.difference.value == row.means["APr"] - first.means["APr"]
    refused = r"APr is not of the same classes in .*Other and .*One: they differ in evaluator\.frequency_bounds"
    with pytest.raises(ConfigError, match=refused):
        tool.compare([one, other], tmp_path / "out", None, "APr", 100, 0)
    with pytest.raises(ConfigError, match=refused):
        tool.compare([one, other], tmp_path / "out", None, "AP", 100, 0, ["APr"])
    tool.compare([one, other], tmp_path / "others", None, "AP", 100, 0)


def test_a_sweep_names_its_systems_and_what_is_missing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    make_run(sweep / "a", 0, "FPN", 0.0)
    make_run(sweep / "b", 0, "Single", 0.3)
    make_run(sweep / "c", 1, "Single", 0.3, finished=False)
    labels = {"a": "model/neck=fpn seed=0", "b": "model/neck=single seed=0", "c": "model/neck=single seed=1"}
    jobs = [{"folder": folder, "label": label, "overrides": []} for folder, label in labels.items()]
    (sweep / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    tool.main([str(sweep), "--samples", "100"])
    assert list(table(sweep / "comparison")) == ["model/neck=fpn", "model/neck=single"]
    assert "Left out, since they have not come to their end: model/neck=single seed=1." in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(runs: list[Path], tmp_path: Path) -> None:
    other = make_run(
        tmp_path / "other",
        0,
        "FPN",
        0.0,
        synthetic_set(num_images=40, num_categories=2, detections_per_image=3, size=200, seed=1),
    )
    with pytest.raises(ConfigError, match=r"other was evaluated on other images or annotations than .*FPN0"):
        tool.compare([runs[0], other], tmp_path / "out", None, "AP", 100, 0)
    with pytest.raises(ConfigError, match="nowhere: neither the folder of a run nor that of a sweep"):
        tool.compare([tmp_path / "nowhere"], None, None, "AP", 100, 0)
    for name, other_measure in {
        "iou_thresholds": {"settings": COCO_SETTINGS._replace(iou_thresholds=(0.5,))},
        "areas": {"settings": COCO_SETTINGS._replace(areas=COCO_SETTINGS.areas[:2])},
        "max_detections": {"max_detections": (1, 10, 300)},
    }.items():
        other = make_run(tmp_path / name, 0, "Other", 0.0)
        replace(ScoredSet.load(other / "detections.npz"), **other_measure).save(other / "detections.npz")
        with pytest.raises(ConfigError, match=rf"{name} was scored with another evaluator\.{name} than .*FPN0"):
            tool.compare([runs[0], other], tmp_path / "out", None, "AP", 100, 0)
    unfinished = make_run(tmp_path / "unfinished", 0, "FPN", 0.0, finished=False)
    with pytest.raises(ConfigError, match="none of the runs has come to its end"):
        tool.compare([unfinished], None, None, "AP", 100, 0)
    (runs[0] / "detections.npz").unlink()
    with pytest.raises(ConfigError, match=r"has no detections.npz"):
        tool.compare(runs[:2], tmp_path / "out", None, "AP", 100, 0)


def one_large_object() -> Any:
    """Images of small objects, and one large object in a single image, which the detector finds."""
    made = synthetic_set(num_images=20, num_categories=2, detections_per_image=6, size=200)
    truths = [replace(t, area=np.full(len(t), 100.0)) for t in made.truths]
    area = truths[3].area.copy()
    area[0] = 100.0**2
    return made._replace(truths=[*truths[:3], replace(truths[3], area=area), *truths[4:]])


def test_a_run_that_is_named_twice_counts_once(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs[0])
    names = [runs[0], runs[1], runs[3], tmp_path / "link", tmp_path / "FPN1" / ".." / "FPN0"]
    tool.main([*map(str, names), "--output", str(tmp_path / "out"), "--samples", "200"])
    seeds = {system: row["seeds"] for system, row in table(tmp_path / "out").items()}
    assert list(seeds.items()) == [("model.neck=FPN", "0 1"), ("model.neck=Worse", "0")]


def test_the_folder_of_a_run_takes_no_table(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (runs[0] / "manifest.json").write_text("{}")
    before = sorted(path.name for path in runs[0].iterdir())
    with pytest.raises(SystemExit):
        tool.main([*map(str, runs), "--output", str(runs[0])])
    assert f"--output: {runs[0]} is the folder of a run" in capsys.readouterr().err
    assert sorted(path.name for path in runs[0].iterdir()) == before


def test_a_comparison_is_not_written_over_one_of_other_runs(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second, third = (str(run.relative_to(tmp_path)) for run in runs[:7:3])
    tool.main([first, second, "--samples", "100"])
    before = (tmp_path / "comparison" / "table.csv").read_bytes()
    refused = r"^comparison holds a comparison of FPN0, Worse0: choose another folder by --output, or delete this one$"
    for output in (None, Path("comparison")):
        with pytest.raises(ConfigError, match=refused):
            tool.compare([Path(first), Path(third)], output, None, "AP", 100, 0)
    assert (tmp_path / "comparison" / "table.csv").read_bytes() == before
    tool.main([str(tmp_path / second), first, "--samples", "100"])
    assert (tmp_path / "comparison" / "table.csv").read_bytes() != before, "the same runs, another baseline"
    tool.main([first, third, "--samples", "100", "--output", "other"])
    (tmp_path / "comparison" / "compared.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"^comparison holds a comparison of runs that are not known: choose"):
        tool.compare([Path(first), Path(second)], None, None, "AP", 100, 0)


def test_runs_and_their_comparison_may_move_together(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    moved = [run.rename(tmp_path / "here" / run.name) for run in runs[:2]]
    tool.compare(moved, tmp_path / "here" / "out", None, "AP", 100, 0)
    there = (tmp_path / "here").rename(tmp_path / "there")
    tool.compare([there / run.name for run in moved], there / "out", None, "AP", 100, 0)


def test_the_comparison_of_a_sweep_is_made_anew_when_more_jobs_are_finished(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    jobs: list[dict[str, Any]] = []
    for seed in range(2):
        make_run(sweep / str(seed), seed, "FPN", 0.1)
        jobs.append({"folder": str(seed), "label": f"seed={seed}", "overrides": []})
        (sweep / "sweep.json").write_text(json.dumps({"jobs": jobs}))
        tool.main([str(sweep), "--samples", "100"])
    assert [row["seeds"] for row in table(sweep / "comparison").values()] == ["0 1"]
    (sweep / "comparison" / "compared.json").unlink()  # as an older one
    tool.main([str(sweep), "--samples", "100"])
    other = make_run(tmp_path / "other", 0, "FPN", 0.1)
    with pytest.raises(ConfigError, match=r"sweep/comparison holds a comparison of .*sweep: choose"):
        tool.compare([other], sweep / "comparison", None, "AP", 100, 0)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.yaml", "a: [", "not YAML: "),
        ("config.yaml", "", "not a mapping of keys but 'None'"),
        ("evaluation.json", '{"metrics": {"AP"', "not JSON: "),
        ("evaluation.json", "{}", "has no metrics"),
        ("evaluation.json", '{"metrics": [1]}', "metrics is not an object but '[1]'"),
        ("evaluation.json", '{"metrics": {"AP": "0.5"}}', "metrics.AP is not a number but '0.5'"),
        ("evaluation.json", '{"metrics": {"AP": true}}', "metrics.AP is not a number but 'True'"),
        ("config.yaml", "trainer: {steps: 4}", "has no seed"),
        ("config.yaml", "seed: one", "seed is not a whole number but 'one'"),
        ("result.json", '{"parameters": "2 M"}', "parameters is not a number but '2 M'"),
        ("result.json", '{"best_step": [4]}', "best_step is not a whole number but '[4]'"),
        ("manifest.json", '{"command": 5}', "command is not a list but '5'"),
        ("manifest.json", '{"resumed": ["now"]}', "resumed.0 is not an object but 'now'"),
        ("manifest.json", '{"resumed": [{"data": "abc"}]}', "resumed.0.data is not an object but 'abc'"),
        ("detections.npz", "", "damaged, or not the detections of an evaluation: No data left in file"),
        ("metrics.csv", "loss,0.5\n", "not the table of logged numbers that a run writes"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name: str, content: str, told: str, runs: list[Path]) -> None:
    (runs[1] / name).write_text(content)
    with pytest.raises(ConfigError, match=re.escape(f"{runs[1] / name}: {told}")):
        tool.compare(runs, runs[0].parent / "out", None, "AP", 200, 0)


def test_a_row_that_was_cut_off_is_none(runs: list[Path]) -> None:
    whole = RunFolder(runs[0]).numbers()
    for part in ("5,train,lo", "5,train,loss,0.1"):
        file = make_run(runs[0].parent / part, 0, "FPN", 0.0) / "metrics.csv"
        file.write_text((runs[0] / "metrics.csv").read_text() + part)
        found = RunFolder(file.parent).numbers()
        assert found.keys() == whole.keys()
        assert all(np.array_equal(a, b) for key in whole for a, b in zip(found[key], whole[key], strict=True))


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[1:],
        lambda lines: [*lines[:4], b"9,train", *lines[4:]],
        lambda lines: [*lines[:4], b"9,train,loss,abc", *lines[4:]],
        lambda lines: [*lines[:4], b"9,train,lo\xff\xfess,1.0", *lines[4:]],
        lambda lines: [*lines[:4], b'9,train,"loss,1.0', *lines[4:]],
    ],
    ids=["no head", "cut off", "no number", "not UTF-8", "a quotation mark"],
)
def test_lines_that_are_no_rows_are_left_out(damage: Any, runs: list[Path], tmp_path: Path) -> None:
    whole, file = RunFolder(runs[0]).numbers(), runs[0] / "metrics.csv"
    file.write_bytes(b"\n".join(damage(file.read_bytes().split(b"\n"))))
    found = RunFolder(runs[0]).numbers()
    assert found.keys() == whole.keys()
    assert all(np.array_equal(a, b) for key in whole for a, b in zip(found[key], whole[key], strict=True))
    tool.main([*map(str, runs[:4]), "--output", str(tmp_path / "out"), "--samples", "100"])


@pytest.mark.parametrize("samples", [1000, 100])
def test_samples_without_the_object_are_told(samples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = one_large_object()
    folders = [make_run(tmp_path / f"{neck}0", 0, neck, lost, data) for neck, lost in (("FPN", 0.0), ("Worse", 0.9))]
    tool.main([*map(str, folders), "--metric", "APl", "--output", str(tmp_path / "out"), "--samples", str(samples)])
    row = table(tmp_path / "out")["model.neck=Worse"]
    undefined = int(row["undefined_samples"])
    assert samples * 0.25 < undefined < samples * 0.5
    markdown, output = (tmp_path / "out" / "table.md").read_text(), capsys.readouterr().out
    assert f"({undefined} of {samples} samples undefined) |" in markdown
    assert f"{undefined} of the {samples} resamplings have no object that APl is about and are left out" in output
    assert ("too few samples (" in markdown) == (samples == 100)
    assert (row["low"] == "nan") == (samples == 100)


def test_a_metric_without_any_object_is_not_defined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = one_large_object()
    data = data._replace(truths=[replace(t, area=np.full(len(t), 100.0)) for t in data.truths])
    folders = [make_run(tmp_path / f"{neck}0", 0, neck, 0.0, data) for neck in ("FPN", "Worse")]
    for folder in folders:
        with (folder / "metrics.csv").open("a") as file:
            file.write("2,val,APl,-1.0\n4,val,APl,nan\n")
    tool.main([*map(str, folders), "--metric", "APl", "--output", str(tmp_path / "out"), "--samples", "100"])
    assert "| - | not defined |" in (tmp_path / "out" / "table.md").read_text()
    assert "not defined: the validation images have no object that APl is about." in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<td>-</td>" in page
    assert "nan" not in re.sub("base64,[A-Za-z0-9+/=]+", "", page)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_one_image_gives_no_interval(
    seeds: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = synthetic_set(num_images=1, num_categories=2, detections_per_image=12, size=200)
    kinds = {"FPN": 0.0, "Worse": 0.6}
    folders = [make_run(tmp_path / f"{n}{s}", s, n, lost, data) for n, lost in kinds.items() for s in seeds]
    tool.main([*map(str, folders), "--output", str(tmp_path / "out"), "--samples", "100"])
    row = table(tmp_path / "out")["model.neck=Worse"]
    assert (row["low"], row["high"], row["difference_shown"]) == ("nan", "nan", "False")
    page = (tmp_path / "out" / "index.html").read_text()
    output = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "| too few images |" in (tmp_path / "out" / "table.md").read_text()
    for told in (output, page):
        assert "too few images: one validation image does not tell how far AP varies" in told
        assert not re.search(
            "nan|Intervals: |images alone|noise of training", re.sub("base64,[A-Za-z0-9+/=]+", "", told)
        )


def test_a_learning_curve_of_one_image_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = synthetic_set(num_images=1, num_categories=2, detections_per_image=12, size=200)
    shares = {0.25: 0.7, 0.5: 0.5, 1.0: 0.0}
    runs = [make_share(tmp_path / f"{share}", 0, share, lost, data) for share, lost in shares.items()]
    tool.main([*map(str, runs), "--output", str(tmp_path / "out"), "--samples", "100"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert re.search(r"would bring [+-]0\.\d+, without an interval \(too few images\)\. .* The law may bend: by", said)
    assert "nan" not in said
