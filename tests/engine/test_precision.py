"""Which number types a device runs in, and of which it is warned."""

import pytest
import torch

from detkit.engine import precision
from detkit.utils.log import logger

CPU = torch.device("cpu")


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch):
    """The warnings of what is checked on a processor that PyTorch knows under a name."""

    def check(capability: str, *asked: precision.Precision) -> list[str]:
        said: list[str] = []
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(logger, "warning", lambda words, *values: said.append(words % values))
        for each in asked:
            precision.check_precision(each, CPU)
        return said

    precision._warn_if_imitated.cache_clear()
    yield check
    precision._warn_if_imitated.cache_clear()


def test_a_processor_without_bf16_is_said_once(warned):
    assert warned("AVX2", "bf16", "bf16") == ["this processor has no bf16 (AVX2): it takes many times as long as fp32"]


@pytest.mark.parametrize(("capability", "asked"), [("AVX512", "bf16"), ("DEFAULT", "bf16"), ("AVX2", "fp32")])
def test_nothing_is_said_where_it_may_be_fast(warned, capability, asked):
    assert warned(capability, asked) == []
