"""One process alone, and two together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detkit.utils import dist

ROOT = Path(__file__).parents[2]

TOGETHER = """
import json, sys
import torch
from detkit.utils import dist
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
norm = torch.nn.BatchNorm1d(2)
norm.running_mean.fill_(float(rank + 5))
counted = torch.tensor(rank * 4 + 3)
mean = dist.mean_over_processes(counted)
dist.broadcast_buffers(norm)
dist.barrier()

def told(error):
    return [type(error).__name__, str(error)]

fails = {}
try:
    dist.from_main(lambda: 1 / 0)
except Exception as error:
    fails["from_main"] = told(error)
for blame in (lambda error: 1, lambda error: 1 + rank):
    try:
        with dist.together(blame=blame):
            raise ValueError(f"mistake {rank}")
    except ValueError as error:
        fails.setdefault("both", []).append(told(error))
with dist.together():
    pass
shared = torch.nn.SyncBatchNorm(2)
with dist.alone(shared):
    fails["alone"] = [dist.world_size(), dist.rank(), dist.any_process(rank == 1)]
    fails["alone"].append(torch.distributed.get_world_size(shared.process_group))
fails["alone"].append(shared.process_group)
print(json.dumps({
    "rank": dist.rank(), "world": dist.world_size(), "main": dist.is_main(),
    "mean": mean.item(), "kept": counted.item(), "floats": dist.mean_over_processes(torch.tensor([rank, 1.0])).tolist(),
    "any": [dist.any_process(rank == 1), dist.any_process(False)],
    "gathered": dist.all_gather({"from": rank}), "buffer": norm.running_mean.tolist(), **fails,
}))
torch.distributed.destroy_process_group()
"""


ELSEWHERE = "FailedElsewhereError"


def elsewhere(rank: int, teller: int) -> list[str]:
    """Class and words of the error in process ``rank`` of two that fail, of which ``teller`` tells."""
    if rank == teller:
        return ["ValueError", f"mistake {rank}"]
    return [ELSEWHERE, f"process {rank} of 2: process {teller} has failed: mistake {teller}"]


def test_alone_everything_is_trivial(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (dist.rank(), dist.world_size(), dist.is_main(), dist.is_initialized()) == (0, 1, True, False)
    value = torch.tensor(3.5, requires_grad=True)
    mean = dist.mean_over_processes(value)
    assert mean.item() == 3.5
    assert not mean.requires_grad
    assert dist.all_gather("x") == ["x"]
    assert [dist.any_process(True), dist.any_process(False)] == [True, False]
    dist.barrier()
    dist.broadcast_buffers(torch.nn.BatchNorm1d(2))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert dist.local_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert dist.local_rank() == 3


def test_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOGETHER]
    processes = [
        subprocess.Popen([*command, str(rank), tmp_path / "store"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for rank, output in enumerate(outputs):
        found = json.loads(output.splitlines()[-1])
        assert (found["rank"], found["world"], found["main"]) == (rank, 2, rank == 0)
        assert found["mean"] == 5.0
        assert found["kept"] == rank * 4 + 3
        assert found["floats"] == [0.5, 1.0]
        assert found["any"] == [True, False]
        assert found["gathered"] == [{"from": 0}, {"from": 1}]
        assert found["buffer"] == [5.0, 5.0]
        if rank == 0:
            assert found["from_main"] == ["ZeroDivisionError", "division by zero"]
        else:
            assert found["from_main"] == [ELSEWHERE, "process 1 of 2: process 0 has failed: division by zero"]
        likeliest = [elsewhere(rank, 0), elsewhere(rank, 1)]
        assert found["both"] == likeliest
        assert found["alone"] == [1, 0, rank == 1, -1, None], "-1 is torch's word for a group without this process"
