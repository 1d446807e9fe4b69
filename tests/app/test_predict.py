"""``tools/predict.py`` on other people's files: bad pictures, cut videos, full disks, and folders with its own output."""

import errno
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.app.use import predict
from detkit.app.use.drawings import Film, PictureFolder
from detkit.app.use.writers import Place, detection_writer
from detkit.config import ConfigError
from detkit.data.datasets.unlabelled import ImageFiles, Picture, VideoFrames
from detkit.structures import Categories
from tests.app.tools import call, train_briefly


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train_briefly(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """The tool in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments, code=0):
        return call(predict.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", *arguments, code=code)

    return start


def noise(h=48, w=64):
    return np.random.default_rng(0).integers(0, 255, (h, w, 3), dtype=np.uint8)


def write_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", noise())[1].tobytes())


def write_video(path, kind="mp4v", count=12):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*kind), 10, (64, 48))
    for _ in range(count):
        writer.write(noise())
    writer.release()


def rows(folder):
    return json.loads((folder / "detections.json").read_text())


def pictures(folder):
    return sorted(path.name for path in folder.glob("*.png"))


def num_frames(path):
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)


def test_bad_pictures_are_named_at_the_end_and_all_others_are_done(run, tmp_path):
    """Names that would meet in one folder do not."""
    for name in ("a.jpg", "a.png", "c/a.png", "z.png"):
        write_picture(tmp_path / "in" / name)
    (tmp_path / "in" / "b.jpg").write_bytes(b"no picture")
    (tmp_path / "in" / "e.png").write_bytes(b"")
    (tmp_path / "in" / "d.jpg").mkdir()
    output = run("input=in", "output=out", "batch_size=3", code=1)
    assert "in 4 images: out" in output
    assert "error: 2 could not be read or written:\n  in/b.jpg: not a readable image" in output
    assert "\n  in/e.png: the file is empty" in output
    assert {row["file_name"] for row in rows(tmp_path / "out")} == {"in/a.jpg", "in/a.png", "in/c/a.png", "in/z.png"}
    assert pictures(tmp_path / "out") == ["000001_a.png", "000002_a.png", "000004_a.png", "000006_z.png"]


def test_a_name_that_is_too_long_is_shortened(run, tmp_path):
    write_picture(tmp_path / "in" / ("x" * 245 + ".png"))
    write_picture(tmp_path / "in" / ("ü" * 120 + ".png"))
    run("input=in", "output=out")
    assert len(pictures(tmp_path / "out")) == 2
    assert pictures(tmp_path / "out")[0] == "000001_" + "x" * 200 + ".png"


def test_where_no_picture_can_be_read_nothing_is_left(run, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    assert "bad.jpg: not a readable image" in run("input=bad.jpg", "output=out/new", code=1)
    assert "input: no file or folder 'nowhere.mp4'" in run("input=nowhere.mp4", code=1)
    assert "batch_size: must be 1 or more, not 0" in run("input=bad.jpg", "batch_size=0", code=2)
    assert "score_threshold: must lie in [0, 1], not nan" in run("input=bad.jpg", "score_threshold=nan", code=2)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("runs/predict/*"))


def test_its_own_output_is_not_read_again(run, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    for output in ("in", "in/out", "in/again"):
        assert "in 1 images" in run("input=in", f"output={output}")
    assert pictures(tmp_path / "in") == ["000001_a.png", "a.png"]
    only_own = run("input=in/out", code=1)
    assert "no image in in/out, but for 1 that detkit drew" in only_own


def test_a_picture_that_is_read_is_never_written_over(run, tmp_path):
    for name in ("0.jpg", "000001_0.png"):
        write_picture(tmp_path / "in" / name)
    before = (tmp_path / "in" / "000001_0.png").read_bytes()
    output = run("input=in", "output=in", code=1)
    assert "in/000001_0.png: not written, since it is one of the pictures to look at" in output
    assert "in 2 images" in output
    assert (tmp_path / "in" / "000001_0.png").read_bytes() == before
    write_video(tmp_path / "detections.mp4")
    assert "is the video that is read" in run("input=detections.mp4", "output=.", code=2)


def test_a_cut_video_keeps_its_good_frames(run, tmp_path):
    write_video(tmp_path / "whole.avi", "MJPG")
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 6 // 10])
    assert "in 12 images" in run("input=whole.avi", "output=whole")
    output = run("input=cut.avi", "output=cut", code=1)
    assert "in 7 images: cut" in output
    assert "cut.avi: cut off: it ends after 7 of the 12 frames it tells of" in output
    assert {row["image_id"] for row in rows(tmp_path / "cut")} == set(range(1, 8))
    assert num_frames(tmp_path / "cut" / "detections.mp4") == 7


class Capture:
    """Takes the place of cv2.VideoCapture: ``count`` frames, of which the header tells something else."""

    told, count, times = -9.2e16, 5, 0.1

    def __init__(self, path):
        self._next = 0

    def get(self, what):
        return {
            cv2.CAP_PROP_FRAME_COUNT: self.told,
            cv2.CAP_PROP_FPS: 0.0,
            cv2.CAP_PROP_POS_MSEC: 1000 * self.times * (self._next - 1),
        }[what]

    def read(self):
        self._next += 1
        return self._next <= self.count, noise()


@pytest.mark.parametrize(
    ("told", "times", "faults"),
    [(-9.2e16, 0.1, 0), (0.0, 0.1, 0), (float("nan"), 0.1, 0), (5, 0.04, 0), (3, 0.04, 0), (9, 0.04, 1), (9, 0.08, 0)],
    ids=["no number", "zero", "nan", "right", "too few", "cut", "uneven times"],
)
def test_frames_are_read_until_none_comes(tmp_path, monkeypatch, told, times, faults):
    (tmp_path / "a.webm").touch()
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    monkeypatch.setattr(Capture, "told", told)
    monkeypatch.setattr(Capture, "times", times)
    frames = VideoFrames(tmp_path / "a.webm")
    assert [picture.number for picture in frames] == [1, 2, 3, 4, 5]
    assert frames.fps == 25
    assert len(frames.faults) == faults


def test_no_more_than_a_batch_is_held(run, tmp_path, monkeypatch):
    """Of a video of any length: frames that are alive at once, counted where they are made."""
    alive = most = 0

    class Counted(Picture):
        def __new__(cls, *values):
            nonlocal alive, most
            alive, most = alive + 1, max(most, alive + 1)
            return super().__new__(cls, *values)

        def __del__(self):
            nonlocal alive
            alive -= 1

    monkeypatch.setattr("detkit.data.datasets.unlabelled.Picture", Counted)
    write_video(tmp_path / "film.mp4", count=24)
    run("input=film.mp4", "output=out", "batch_size=2")
    assert num_frames(tmp_path / "out" / "detections.mp4") == 24
    assert most <= 6


def interrupt_after(monkeypatch, count, error):
    """Let the drawing of a picture fail once ``count`` are drawn; what the results file holds then."""
    drawn, seen = 0, []
    plain = predict._draw

    def draw(*arguments):
        nonlocal drawn
        drawn += 1
        if drawn > count:
            seen.append(rows(Path("out")))
            raise error
        return plain(*arguments)

    monkeypatch.setattr(predict, "_draw", draw)
    return seen


def test_ctrl_c_leaves_what_was_found_in_whole_files(run, tmp_path, monkeypatch):
    """At that very moment the results are whole already: no kill can reach them."""
    write_video(tmp_path / "film.mp4")
    seen = interrupt_after(monkeypatch, 5, KeyboardInterrupt())
    output = run("input=film.mp4", "output=out", "batch_size=2", code=130)
    assert "stopped by Ctrl-C" in output
    assert "Traceback" not in output
    assert "in 6 images: out" in output
    assert {row["image_id"] for row in rows(tmp_path / "out")} == {1, 2, 3, 4, 5, 6}
    assert seen == [rows(tmp_path / "out")]
    assert num_frames(tmp_path / "out" / "detections.mp4") == 5


def test_a_full_disk_leaves_what_was_found_in_a_whole_file(run, tmp_path, monkeypatch):
    """Half a row is written before the disk is full."""
    for i in range(4):
        write_picture(tmp_path / "in" / f"{i}.png")
    written, pwrite = 0, os.pwrite

    def full(file, content, place):
        nonlocal written
        room = max(0, 20_000 - written)
        if place + len(content) > 20_000 and not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += pwrite(file, content[: max(room, 3)], place)
        return min(len(content), max(room, 3))

    monkeypatch.setattr(os, "pwrite", full)
    output = run("input=in", "output=out", "batch_size=1", code=1)
    assert "error: out/detections.json: No space left on device" in output
    assert "Traceback" not in output
    found = rows(tmp_path / "out")
    assert 0 < len(found) < 400
    assert f"{len(found)} detections in" in output


def test_a_full_disk_ends_the_work_and_one_bad_file_does_not(tmp_path):
    picture = Picture(1, "a.png", noise())
    folder = PictureFolder(tmp_path, [])
    (tmp_path / "000001_a.png").mkdir()
    folder.add(picture, noise())
    assert folder.faults == [f"{tmp_path / '000001_a.png'}: Is a directory"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left on device: '.*/000002_a.png'"):
            folder.add(picture._replace(number=2), noise())
    assert [path.name for path in tmp_path.iterdir()] == ["000001_a.png"]


def test_a_video_that_cannot_be_written_is_named(tmp_path):
    film = Film(tmp_path / "gone" / "detections.mp4", 10)
    film.add(Picture(1, "a.mp4#1", noise()), noise())
    film.close()
    assert film.faults == [f"{tmp_path / 'gone' / 'detections.mp4'}: 0 of 1 frames could be written"]


def test_frames_of_another_size_are_not_left_out(tmp_path):
    film = Film(tmp_path / "detections.mp4", 10)
    for size in ((48, 64), (96, 128), (48, 64)):
        film.add(Picture(1, "a.mp4#1", noise(*size)), noise(*size))
    film.close()
    assert film.faults == []
    assert num_frames(tmp_path / "detections.mp4") == 3


def test_what_no_transform_can_take_is_a_fault_of_that_picture_alone(run, tmp_path, monkeypatch):
    from detkit.data.transforms import ResizeFit

    for name in "abcd":
        write_picture(tmp_path / "in" / f"{name}.png")
    write_picture(tmp_path / "in" / "wide.png")
    (tmp_path / "in" / "wide.png").write_bytes(cv2.imencode(".png", noise(4, 200))[1].tobytes())
    plain = ResizeFit.__call__

    def refuse(self, sample, key):
        if sample.size[0] == 4:
            raise ValueError("too flat")
        return plain(self, sample, key)

    monkeypatch.setattr(ResizeFit, "__call__", refuse)
    output = run("input=in", "output=out", "transform.val.fit={_target_:ResizeFit,size:64}", code=1)
    assert "in 4 images" in output
    assert "in/wide.png: too flat" in output


def test_a_wide_and_a_high_picture_are_not_padded_to_the_square_of_both(run, tmp_path, monkeypatch):
    """Others stay together, and all come in their order."""
    from detkit.data import collate

    shapes = {"a": (96, 128), "b": (1200, 1), "c": (128, 96), "d": (1, 1200), "e": (1100, 2)}
    (tmp_path / "in").mkdir()
    for name, (h, w) in shapes.items():
        (tmp_path / "in" / f"{name}.png").write_bytes(cv2.imencode(".png", noise(h, w))[1].tobytes())
    sizes, plain = [], collate.unpack

    def unpack(parcel):
        sizes.append(tuple(parcel.pixels.shape))
        return plain(parcel)

    monkeypatch.setattr("detkit.data.workers.unpack", unpack)
    options = ("input=in", "score_threshold=0")
    run(*options, "output=together", "batch_size=5")
    assert sizes == [(2, 3, 128, 128), (2, 3, 1216, 32), (1, 3, 32, 1216)]
    monkeypatch.setattr("detkit.data.workers.unpack", plain)
    run(*options, "output=alone", "batch_size=1")
    together, alone = rows(tmp_path / "together"), rows(tmp_path / "alone")
    assert [row["file_name"] for row in together] == [row["file_name"] for row in alone]
    assert {row["file_name"] for row in together} == {f"in/{name}.png" for name in shapes}
    assert pictures(tmp_path / "together") == pictures(tmp_path / "alone")
    d_together, d_alone = ([row for row in found if row["image_id"] == 4] for found in (together, alone))
    assert d_together == d_alone


def test_pages_that_are_not_read_are_told(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name, count in (("a.tif", 1), ("b.tif", 3), ("c.gif", 2)):
        pages = [Image.fromarray(np.roll(noise(), i, axis=0)) for i in range(count)]
        pages[0].save(tmp_path / "in" / name, save_all=True, append_images=pages[1:])
    output = run("input=in", "output=out")
    assert output.count("several pages or frames") == 1
    assert "of 2 files with several pages or frames the first alone was read: in/b.tif, in/c.gif" in output


def test_patterns_and_lists_are_no_input(run, tmp_path):
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name)
    taken = "a file or a folder is taken, no pattern and no list"
    assert f"input: no file or folder '*.png'; {taken}" in run("input=*.png", code=1)
    assert f"input: {taken}: put what belongs together into a folder" in run("input=[a.png,b.png]", code=2)


def test_a_class_whose_name_has_two_lines_has_no_place_in_classes_txt(tmp_path):
    place = Place(tmp_path, tmp_path)
    for name in ("a\nb", "a\rb"):
        with pytest.raises(ConfigError, match=r"format=yolo: the class 'a\\[nr]b' has a line break"):
            detection_writer("yolo", place, Categories(("c", name), (1, 2)))
    assert not list(tmp_path.iterdir())


def test_folders_are_read_by_name_and_what_is_no_image_is_counted(tmp_path):
    for name in ("b.png", "A.PNG", "sub/c.png"):
        write_picture(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    files = ImageFiles(tmp_path)
    assert [picture.file for picture in files] == [str(tmp_path / name) for name in ("A.PNG", "b.png", "sub/c.png")]
    assert files.others == {".txt": 1}


def test_linked_folders_are_read_too_and_each_once(tmp_path):
    for name in ("in/a.png", "elsewhere/b.png"):
        write_picture(tmp_path / name)
    for name in ("linked", "linked_again"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    names = [picture.file for picture in ImageFiles(tmp_path / "in")]
    assert names == [str(tmp_path / "in" / name) for name in ("a.png", "linked/b.png")]


def test_misspelt_options_are_told_with_the_tool_s_own_names(run, tmp_path):
    write_picture(tmp_path / "a.png")
    told = run("input=a.png", "score_treshold=0.1", "optim.lrr=1", code=2)
    assert "score_treshold: no key 'score_treshold'; did you mean 'score_threshold'?" in told
    assert "optim.lrr: no argument 'lrr'; did you mean 'lr'?" in told
    assert "zzz: no key 'zzz'; known: batch_size, checkpoint, device, format" in run("input=a.png", "zzz=1", code=2)
