"""Which number types a device runs in, and of which it is warned."""

import pytest
import torch

from detkit.engine import precision
from detkit.utils.log import logger


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch):
    """The warnings of what is checked on a processor that PyTorch knows under a name."""

    def check(capability: str, *asked: precision.Precision, machine: str = "x86_64", device: str = "cpu") -> list[str]:
        said: list[str] = []
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(precision.platform, "machine", lambda: machine)
        monkeypatch.setattr(logger, "warning", lambda words, *values: said.append(words % values))
        for each in asked:
            precision.check_precision(each, torch.device(device))
        return said

    precision._warn_if_imitated.cache_clear()
    yield check
    precision._warn_if_imitated.cache_clear()


def test_a_processor_without_bf16_is_said_once(warned):
    words = "this processor has no bf16 (AVX2), which takes many times as long here as precision=fp32"
    assert warned("AVX2", "bf16", "bf16") == [words]


@pytest.mark.parametrize(("capability", "asked"), [("AVX512", "bf16"), ("DEFAULT", "bf16"), ("AVX2", "fp32")])
def test_nothing_is_said_where_it_may_be_fast(warned, capability, asked):
    assert warned(capability, asked) == []


def test_nothing_is_said_of_a_gpu_or_of_another_kind_of_processor(warned):
    assert warned("AVX2", "bf16", device="cuda") == []
    assert warned("NO AVX", "bf16", machine="arm64") == []
