from __future__ import annotations

import pytest

from benchmarks import host
from benchmarks.tool import main
from detkit.ops.cuda import compile as kernels


def test_every_kernel_is_reached_but_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    reached, launch = set(), kernels.launch
    monkeypatch.setattr(kernels, "run", lambda *_: pytest.fail("launched"))
    for module in ("region_pooling", "ps_roi_pool", "deform_conv"):
        watched = lambda source, name, *rest, **macros: (reached.add(name), launch(source, name, *rest, **macros))  # noqa: E731
        monkeypatch.setattr(f"detkit.ops.cuda.{module}.launch", watched)
    times = host.benchmark_host(repeats=1)
    assert reached == {
        "region_forward", "region_backward", "ps_pool_forward", "ps_pool_backward", "deform_forward",
        "deform_backward_data", "deform_backward_weight",
    }  # fmt: skip
    assert all(0 < without < both for without, _, both in times.values())


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["host", "--repeats", "1"])
    assert "deformable convolution" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        host.main(["--repeats", "0"])
    assert "--repeats must be at least 1, not 0" in capsys.readouterr().err
