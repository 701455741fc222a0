"""The house keeps its shape: who may import whom, what an import loads, what the wheel is told to hold."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"moe_probe": ROOT / "moe_probe", "moe_probe_app": ROOT / "app/moe_probe_app"}

# A module or package may import from its own floor and from the floors above it in this list.
FLOORS = (
    {"errors"},
    {"schema", "measures", "progress", "showing", "watching"},
    {"corpus", "palette"},
    {"labels", "models", "recording"},
    {"store"},
    {"relabelling", "importers"},
    {"cluster", "tracing"},
    {"counts"},
    {"tables"},
    {"intervening"},
    {"effects"},
    {"charts", "export", "info"},
    {"report", "tokenview"},
    {"comparing", "notebook"},
    {"cli"},
)
TORCH_ALLOWED = {"cluster", "effects", "importers", "intervening", "models", "recording", "tracing"}
TORCH = {"torch", "transformers", "accelerate", "bitsandbytes", "moe_probe_kernels"}


def _modules() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(PACKAGES["moe_probe"]).with_suffix("").parts[0], path)
        for path in sorted(PACKAGES["moe_probe"].rglob("*.py"))
        if path.relative_to(PACKAGES["moe_probe"]) != Path("__init__.py")
    ]


def _imports(path: Path, *, top_level_only: bool) -> set[str]:
    """Return the dotted names that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if not top_level_only else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _floor_of(module: str) -> int:
    return next(index for index, floor in enumerate(FLOORS) if module in floor)


@pytest.mark.parametrize(("module", "path"), _modules(), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_a_module_imports_only_what_stands_above_it(module: str, path: Path) -> None:
    own_floor = _floor_of(module)
    for name in _imports(path, top_level_only=False):
        parts = name.split(".")
        known = len(parts) > 1 and any(parts[1] in floor for floor in FLOORS)
        if parts[0] == "moe_probe" and known:
            assert _floor_of(parts[1]) <= own_floor, f"{path.name} imports {name} from below"
        if parts[0] in TORCH and module != "cli":
            assert module in TORCH_ALLOWED, f"{path.name} imports {name}, which only {sorted(TORCH_ALLOWED)} may"


@pytest.mark.parametrize("path", sorted((ROOT / "moe_probe/measures").rglob("*.py")), ids=lambda path: path.name)
def test_measures_are_numpy_only(path: Path) -> None:
    roots = {name.split(".")[0] for name in _imports(path, top_level_only=False)}
    own = {name for name in _imports(path, top_level_only=False) if name.startswith("moe_probe.")}
    assert roots - set(sys.stdlib_module_names) <= {"numpy", "scipy", "moe_probe"}
    assert all(name.startswith(("moe_probe.errors", "moe_probe.measures")) for name in own)


@pytest.mark.parametrize("path", sorted((ROOT / "app").rglob("*.py")), ids=lambda path: path.name)
def test_the_explorer_holds_no_sql_and_no_arrays(path: Path) -> None:
    roots = {name.split(".")[0] for name in _imports(path, top_level_only=False)}
    assert not roots & {"duckdb", "numpy", "scipy", "torch", "transformers"}
    assert ".sql(" not in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: path.name)
def test_kernels_do_not_know_moe_probe(path: Path) -> None:
    roots = {name.split(".")[0] for name in _imports(path, top_level_only=False)}
    assert not roots & {"moe_probe", "moe_probe_app", "moe_probe_data"}


@pytest.mark.parametrize("command", ["import moe_probe", "import moe_probe.cli; moe_probe.cli.main(['--help'])"])
def test_the_import_and_the_help_load_nothing_heavy(command: str) -> None:
    heavy = ["torch", "transformers", "triton", "ray", "streamlit", "polars", "duckdb", "plotly", "spacy", "pyarrow"]
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', [name for name in {heavy} if name in sys.modules]))\n"
        f"{command}"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.endswith("LOADED []\n")


def test_recording_needs_torch_and_numpy_only() -> None:
    code = (
        "import sys\n"
        "blocked = {'polars', 'duckdb', 'pyarrow', 'streamlit', 'bitsandbytes', 'spacy'}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import torch, tiny_models, moe_probe as mp\n"
        "model = tiny_models.build('mixtral')\n"
        "with mp.record(model) as recording, torch.inference_mode():\n"
        "    model(torch.arange(3, 13)[None])\n"
        "print(recording.routing().experts(0).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.stdout == "(10, 2)\n", done.stderr


def test_every_package_folder_is_named_in_pyproject() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    roots = {"moe_probe": ROOT / "moe_probe"} | {name: ROOT / path for name, path in settings["package-dir"].items()}
    found = set()
    for name, folder in roots.items():
        found |= {
            ".".join((name, *path.parent.relative_to(folder).parts))
            for path in folder.rglob("*.py")
            if name != "moe_probe_data" or path.parent == folder
        }
    assert found == set(settings["packages"])


def test_every_constraint_is_exact_and_covers_the_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {one.split("[")[0].split(">")[0].split("=")[0].strip().lower() for one in asked} - {"moe-probe"}
    assert names <= {name.lower().replace("_", "-") for name in pins} | {"setuptools"}
