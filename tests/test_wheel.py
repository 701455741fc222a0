"""The wheel holds everything that the demo needs, and what it holds works from another folder without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import moe_probe as mp

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_explorer_the_kernels_the_model_and_the_sample(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "moe_probe/py.typed",
        "moe_probe/tokenview/tokenview.js",
        "moe_probe/tokenview/tokenview.css",
        "moe_probe_app/serve.py",
        "moe_probe_app/pages/text.py",
        "moe_probe_kernels/pack.py",
        "moe_probe_data/tiny-mixtral/model.safetensors",
        "moe_probe_data/tiny-mixtral/tokenizer.json",
    } <= names
    samples = {f"moe_probe_data/{path.relative_to(ROOT / 'data')}" for path in (ROOT / "data/sample").rglob("*.*")}
    assert samples
    assert samples <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]


def test_the_wheel_alone_runs_the_demo_in_four_bits_from_another_folder_with_no_network(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import socket, sys\n"
        "def refuse(*arguments): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "import moe_probe\n"
        f"assert moe_probe.__file__.startswith({str(tmp_path / 'site')!r}), moe_probe.__file__\n"
        "from moe_probe.cli import main\n"
        "main(['demo', '--no-browser'])\n"
    )
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0, done.stderr
    run = mp.open_run(tmp_path / "elsewhere/runs/demo")
    assert run.complete
    precision = {row["part"]: row for row in run.manifest["precision"]}
    assert precision["experts"]["bits_per_parameter"] < 5
    assert precision["router"]["bits_per_parameter"] >= 16
    assert {label.name for label in run.labels} == {"upos", "shape", "code", "domain"}
