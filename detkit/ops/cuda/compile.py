"""From ``*.cu`` beside this file to a kernel on the GPU: compiled by NVRTC, kept on disk, launched on torch's stream.

NVRTC comes with torch's own wheels, ``cuda.core`` is a dependency of detkit on Linux. Where either is missing one line
says so and the ops run in their PyTorch form, and so does an op one of whose kernels is refused when it first comes.
``DETKIT_CACHE`` moves the folder of compiled kernels.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from detkit.utils.files import atomic_write
from detkit.utils.log import logger

FOLDER = Path(__file__).parent

#: names of the element types in device.cuh
TYPES = {torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16"}

#: mma.m16n8k16 and bfloat16 conversions begin here
MIN_CAPABILITY = (8, 0)

Macros = tuple[tuple[str, str], ...]


#: (source, element type, device) of ops that run in their PyTorch form, since one of their kernels failed
_failed: set[tuple[str, torch.dtype, torch.device]] = set()

#: kernels that were launched once: what fails later is no matter of what this GPU or its driver can run
_launched: set[tuple[str, str, Macros, torch.device]] = set()

#: what :func:`_works_on` found
_trials: dict[tuple[torch.device, tuple[int, int]], bool] = {}


class Unusable(RuntimeError):
    """A kernel could not be compiled or launched when it first came; its cause says why."""


def usable(source: str, *tensors: Tensor | None) -> bool:
    """Whether the kernels of ``source`` can take these tensors: on one GPU, of their element types, NVRTC is at hand.

    False also where one of them failed before, so that the backward pass has its forward pass's form.
    """
    given = [t for t in tensors if t is not None]
    return (source, given[0].dtype, given[0].device) not in _failed and _on_a_gpu(given)


@contextmanager
def or_in_pytorch(source: str, first: Tensor) -> Iterator[None]:
    """An op runs its kernels in it and returns; where one is :class:`Unusable` the op goes on behind it, in PyTorch.

    One line says so, once: from then on ``source`` is not :func:`usable` for the type and device of ``first``.

    Args:
        first: the first tensor that :func:`usable` was asked about.
    """
    try:
        yield
    except Unusable as error:
        _failed.add((source, first.dtype, first.device))
        _tell(f"{source} with {TYPES[first.dtype]} on {first.device}", error)


def _on_a_gpu(given: Sequence[Tensor]) -> bool:
    return (
        all(t.is_cuda and (t.dtype in TYPES or not t.is_floating_point()) for t in given)
        and len({t.device for t in given}) == 1
        and _works_on(given[0].device, torch.cuda.get_device_capability(given[0].device))
    )


def _works_on(device: torch.device, capability: tuple[int, int]) -> bool:
    """Compile the smallest kernel, launch it and look at what it made; where that fails say so, once.

    What the driver or the GPU refuses shows here, and not in the user's first step. A trial would end the capture of a
    graph: meanwhile kernels are taken on trust.

    Raises:
        torch.OutOfMemoryError: the trial found no memory, which says nothing of the kernels.
    """
    known = _trials.get((device, capability))
    if known is not None:
        return known
    arch = f"sm_{capability[0]}{capability[1]}"
    try:
        if torch.version.hip is not None:  # its GPUs pass for CUDA devices, and NVRTC compiles without looking at them
            raise RuntimeError("this torch is built for ROCm")
        if capability < MIN_CAPABILITY:
            raise RuntimeError(f"compute capability {capability[0]}.{capability[1]} is below 8.0")
        if _captures(device):
            return True
        _try_on(device)
        _trials[device, capability] = True
    except Exception as error:  # a missing library, a GPU that NVRTC does not know yet: every cause has the same remedy
        if _out_of_memory(error):
            raise
        _trials[device, capability] = False
        _tell(arch, error)
    return _trials[device, capability]


def _tell(what: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:200]
    logger.warning("no CUDA kernels for %s, sampling ops run in their PyTorch form: %s", what, reason)


def _captures(device: torch.device) -> bool:
    """Whether a graph captures what the current stream of ``device`` does."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _out_of_memory(error: Exception) -> bool:
    """Of torch, Python, the driver or NVRTC; the last two know no class for it."""
    named = "out of memory" in str(error).lower().replace("_", " ")
    return named or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _try_on(device: torch.device) -> None:
    """Three sums through ``settle``.

    Raises:
        RuntimeError: it gave other numbers.
    """
    sums = torch.tensor([3, -(1 << 40), 0], dtype=torch.int64, device=device)
    found = settled(sums, torch.tensor([0.25], device=device), torch.float32).tolist()
    if found != [0.75, -(2.0**38), 0.0]:
        raise RuntimeError(f"a trial kernel made {found} of 3, -2^40 and 0 in quarters")


def binary(source: str, macros: Macros, arch: str) -> bytes:
    """The machine code of ``source`` for ``arch`` (sm_90, say), from the cache where it is there and whole.

    Raises:
        ImportError: cuda.core is not installed.
        RuntimeError: NVRTC is missing, or refuses; with its log.
    """
    texts = [(path.name, path.read_text()) for path in (*sorted(FOLDER.glob("*.cuh")), FOLDER / source)]
    key = hashlib.sha256(repr((texts, macros, arch, _versions())).encode()).hexdigest()
    path = cache_folder() / f"{source.removesuffix('.cu')}-{arch}-{key[:32]}.cubin"
    code = _read(path)
    if code is None:
        code = _compile(source, macros, arch)
        _write(path, code)
    return code


def _compile(source: str, macros: Macros, arch: str, logs: TextIO | None = None) -> bytes:
    """What NVRTC makes of it; to ``logs`` it tells what each kernel takes of registers and memory."""
    from cuda.core import Program, ProgramOptions  # pyright: ignore

    options = ProgramOptions(
        name=source, arch=arch, std="c++17", define_macro=list(macros), include_path=str(FOLDER), ptxas_options=["-v"]
    )  # fmt: skip
    program = Program((FOLDER / source).read_text(), code_type="c++", options=options)
    return bytes(program.compile("cubin", logs=logs).code)


@functools.cache
def _versions() -> tuple[str, ...]:
    import cuda.core
    from cuda.bindings import nvrtc  # pyright: ignore

    return (cuda.core.__version__, repr(nvrtc.nvrtcVersion()))


def cache_folder() -> Path:
    """Where compiled kernels are kept: DETKIT_CACHE, or detkit/kernels in the user's cache folder."""
    if given := os.environ.get("DETKIT_CACHE"):
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "detkit" / "kernels"


def _read(path: Path) -> bytes | None:
    """The code in ``path``, after its checksum; None where there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, code = content[:32], content[32:]
    return code if code and hashlib.sha256(code).digest() == checksum else None


def _write(path: Path, code: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, hashlib.sha256(code).digest() + code)
    except OSError:  # a home that cannot be written costs a compilation in each process, and nothing else
        logger.debug("compiled kernels are not kept: %s cannot be written", path.parent)


@functools.cache
def _kernel(source: str, name: str, macros: Macros, device: int) -> Any:
    from cuda.core import ObjectCode  # pyright: ignore

    major, minor = torch.cuda.get_device_capability(device)
    return ObjectCode.from_cubin(binary(source, macros, f"sm_{major}{minor}")).get_kernel(name)


@functools.lru_cache(maxsize=1024)
def _config(grid: tuple[int, ...], block: tuple[int, ...]) -> Any:
    from cuda.core import LaunchConfig  # pyright: ignore

    return LaunchConfig(grid=grid, block=block)


def launch(
    source: str,
    name: str,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[Tensor | np.generic | None],
    **macros: int | str,
) -> None:
    """Run a kernel on the current stream of its tensors' device.

    Args:
        source: file name, such as ``region_pooling.cu``.
        name: of the kernel in it.
        grid: blocks along x, y, z; nothing is launched where one is 0.
        block: threads along x, y, z.
        arguments: tensors for pointers (None is the null pointer), numpy scalars of the parameters' very types.
        macros: what the source wants defined.

    Raises:
        Unusable: this kernel comes for the first time on this device, and cannot be compiled or launched. What lacks
            memory is raised as it is, and what fails while a graph captures: it may work elsewhere.
    """
    if 0 in grid:
        return
    defined = tuple(sorted((k, str(v)) for k, v in macros.items()))
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    kernel = (source, name, defined, device)
    try:
        run(source, name, tuple(grid), tuple(block), arguments, defined, device)
    except Exception as error:  # a driver's, a compiler's, a missing library's: every cause has the same remedy
        if kernel in _launched or _out_of_memory(error) or _captures(device):
            raise
        raise Unusable(str(error)) from error
    _launched.add(kernel)


def run(
    source: str,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[Tensor | np.generic | None],
    macros: Macros,
    device: torch.device,
) -> None:
    """What :func:`launch` does in the end. Tests put the CPU here."""
    from cuda.core import Device  # pyright: ignore
    from cuda.core import launch as start  # pyright: ignore

    with torch.cuda.device(device):
        Device(torch.cuda.current_device()).set_current()  # a thread in which torch did nothing yet has no context
        kernel = _kernel(source, name, macros, torch.cuda.current_device())
        values = [a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a for a in arguments]
        start(torch.cuda.current_stream(), _config(grid, block), kernel, *values)


def fixed_point(largest: Tensor) -> tuple[Tensor, Tensor]:
    """The unit of fixed-point sums none of which exceeds ``largest`` (a scalar tensor), and its inverse, (1,) each.

    Sums stay below 2^62. Where ``largest`` is not finite the inverse is NaN, and so will be all that is made with it.
    """
    largest = largest.float().reshape(1)
    exponent = (62 - torch.frexp(largest.nan_to_num(0, 0, 0))[1]).clamp(-126, 126)
    one = torch.ones_like(largest)
    inverse = torch.where(largest.isfinite(), torch.ldexp(one, -exponent), torch.nan)
    return torch.ldexp(one, exponent), inverse


def settled(sums: Tensor, inverse: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Sums (float32, or int64 in fixed point; dense) as numbers of ``dtype``, in the same order in memory."""
    if inverse is None:
        return sums.to(dtype)
    out = torch.empty_strided(sums.shape, sums.stride(), dtype=dtype, device=sums.device)
    blocks = min((sums.numel() + 255) // 256, 1 << 16)
    launch(
        "sums.cu", "settle", (blocks, 1, 1), (256, 1, 1), [sums, out, inverse, np.int64(sums.numel())],
        TYPE=TYPES[dtype], FIXED=1,
    )  # fmt: skip
    return out


def deterministic() -> bool:
    """Whether the user asked torch for the same bits in every run."""
    return torch.are_deterministic_algorithms_enabled()
