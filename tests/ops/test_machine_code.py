"""What NVRTC makes of the kernels, read as the GPU's own instructions: nvdisasm comes with triton's wheel."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from detkit.ops.cuda import compile as kernels
from tests.ops.test_kernels import ARCHITECTURES, instantiations


@pytest.fixture(scope="module")
def nvdisasm():
    pytest.importorskip("cuda.core", reason="cuda.core is not installed")
    found = find_spec("triton")
    folders = (found.submodule_search_locations or []) if found else []
    paths = [Path(folder) / "backends" / "nvidia" / "bin" / "nvdisasm" for folder in folders]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        pytest.skip("there is no nvdisasm: triton is not installed, or without it")
    return path


def instructions(source, macros, arch, nvdisasm, folder):
    """Names of all instructions of all kernels, such as ``LDG.E.128``."""
    path = folder / "kernels.cubin"
    path.write_bytes(kernels._compile(source, tuple(sorted((k, str(v)) for k, v in macros.items())), arch))
    text = subprocess.run([nvdisasm, "-c", path], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(\w+(?:\.\w+)*)", text, re.MULTILINE))


def assert_accesses_say_where(found):
    """Global memory is reached as such: nothing asks at run time in which memory a pointer lies."""
    assert any(name.startswith("LDG.") for name in found), "no instruction was understood"
    assert not {name for name in found if name.split(".")[0] in ("QSPC", "LD", "ST", "ATOM")}


REGIONS = {"TYPE": "Float", "LEVELS": 5}


@pytest.mark.parametrize(
    ("arch", "macros"),
    [
        ("sm_80", {**REGIONS, "VEC": 4, "FIXED": 0}),
        ("sm_90", {**REGIONS, "VEC": 4, "FIXED": 1}),
        ("sm_90", {**REGIONS, "VEC": 1, "FIXED": 0}),
    ],
)
def test_pooling_knows_that_its_maps_lie_in_global_memory(arch, macros, nvdisasm, tmp_path):
    """A pointer that is chosen among the levels' was one to anywhere: additions tried shared memory first."""
    assert_accesses_say_where(instructions("region_pooling.cu", macros, arch, nvdisasm, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_knows_where_its_memory_lies(arch, nvdisasm, tmp_path):
    for source, macros in instantiations(True):
        assert_accesses_say_where(instructions(source, macros, arch, nvdisasm, tmp_path))
