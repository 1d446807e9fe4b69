"""The race of MTCNN: who is missing is named, and only equals race. Its times are not tested."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cascade, tool
from detkit.config import ConfigError
from detkit.models.mtcnn.nets import ONet, PNet, RNet


class Peer(SimpleNamespace):
    """What the benchmark knows of facenet-pytorch's MTCNN: three networks, and boxes."""

    min_face_size = 20

    def detect(self, picture, landmarks):
        assert landmarks
        boxes = cascade.detector_like(self)(picture).numpy() + self.moved
        return (boxes if len(boxes) else None), None, None


def peer(moved=0.0):
    torch.manual_seed(3)
    nets = PNet(), RNet(), ONet(1, num_landmarks=5)
    for net, layer in zip(nets, ("conv4_1", "dense5_1", "dense6_1"), strict=True):
        getattr(net, layer).weight.data *= 30
    return Peer(pnet=nets[0], rnet=nets[1], onet=nets[2], moved=moved)


def picture():
    noise = torch.rand(1, 3, 15, 20, generator=torch.Generator().manual_seed(5)) * 255
    return torch.nn.functional.interpolate(noise, size=(61, 83)).byte()[0].permute(1, 2, 0).numpy()


def test_equals_are_timed():
    text = cascade.compare(peer(), [picture()] * 2)
    assert "the same 0 boxes" not in text
    assert "(0 of them by more than 0.05)" in text
    moved = cascade.compare(peer(moved=0.1), [picture()])
    assert "boxes to 0.1 px (0 of them" not in moved
    assert "times as fast" in text


def test_another_s_boxes_are_no_race():
    with pytest.raises(ValueError, match=r"picture 0: detkit gives \[\[.*, facenet-pytorch \[\["):
        cascade.compare(peer(moved=1.1), [picture()])
    one = torch.tensor([[1.0, 2, 3, 4]])
    for pair in ((one, one[:0]), (one[:0], one), (torch.cat([one, one + 9]), torch.cat([one, one]))):
        with pytest.raises(ValueError, match="picture 7"):
            cascade.check_same(*pair, 7)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(
        cascade.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(f"no {name}"))
    )
    with pytest.raises(ConfigError, match=r"no facenet_pytorch.models.mtcnn: .*pip install --no-deps facenet-pytorch"):
        tool.run(["mtcnn", "--images", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"--images: .* is no folder with pictures \(.bmp"):
        cascade.read_pictures(tmp_path, 3)
    for name in "ba":
        Image.fromarray(np.full((9, 9, 3), ord(name), np.uint8)).save(tmp_path / f"{name}.png")
    (first,) = cascade.read_pictures(tmp_path, 1)
    assert first.shape == (480, 640, 3)
    assert first[0, 0, 0] == ord("a")
