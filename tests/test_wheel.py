"""What is installed from a wheel, in a folder that is no checkout: the command, its configurations, the Python door."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The ``bin`` folder of an environment with the wheel; what detkit needs is this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    python = folder / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--force-reinstall", built], check=True)
    return python.parent


def run(*command, cwd, code=0):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DETKIT"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_wheel_in_an_empty_folder(installed, tmp_path):
    detkit = installed / "detkit"
    where = run(installed / "python", "-c", "import detkit; print(detkit.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent), "not the checkout"
    assert "detkit train" in run(detkit, cwd=tmp_path)
    assert "choose an experiment: detkit train experiment=NAME" in run(detkit, "train", cwd=tmp_path, code=2)
    small = ["data.train.num_train=4", "data.train.num_val=2", "data.train.image_size=64", "device=cpu", "threads=1"]
    output = run(detkit, "train", "experiment=quickstart", "debug=fast", *small, "hydra.run.dir=run", cwd=tmp_path)
    assert "run folder:" in output
    assert (tmp_path / "run" / "result.json").is_file()
    code = "import detkit; print(len(detkit.load('run/best.pt').class_names))"
    assert run(installed / "python", "-c", code, cwd=tmp_path).strip() == "6"
    assert "AP" in run(detkit, "evaluate", "checkpoint=run/best.pt", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tool", ["train", "evaluate", "predict", "audit", "explain", "compare", "inspect-data", "list"]
)
def test_every_command_helps(installed, tmp_path, tool):
    assert f"detkit {tool}" in run(installed / "detkit", tool, "--help", cwd=tmp_path)
