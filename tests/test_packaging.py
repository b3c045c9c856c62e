"""The package as a user installs it: what is in the wheel, and that it works from elsewhere."""

import ast
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ["envs", "agents", "benchmarks"]


def test_every_package_folder_is_listed_in_pyproject():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        folder.relative_to(ROOT).as_posix()
        for top in ["awsgd_rl", *MAPPED]
        for folder in (file.parent for file in (ROOT / top).rglob("__init__.py"))
    }
    assert found == set(settings["package-dir"].values())
    assert set(settings["packages"]) == set(settings["package-dir"])


@pytest.mark.parametrize("folder", MAPPED)
def test_a_folder_imported_by_its_bare_name_says_which_name_to_use(folder):
    result = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert f"import awsgd_rl.{folder}" in result.stderr


LAYERS = ("core", "envs", "agents", "benchmarks", "top")


def layer(module):
    """Where a module of the package stands: it may use what stands as high, or lower."""
    folder, *_ = module.removeprefix("awsgd_rl").lstrip(".").split(".")
    if folder in MAPPED:
        return LAYERS.index(folder)
    return LAYERS.index("top" if folder.startswith(("cli", "report")) else "core")


def imported(node):
    """The modules that are imported anywhere in it, but for those that only types need."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.module == "awsgd_rl":
        yield from (f"awsgd_rl.{name.name}" for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""
    elif isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def test_dependencies_point_one_way():
    upward = [
        (module, name)
        for top in ["awsgd_rl", *MAPPED]
        for file in sorted((ROOT / top).glob("*.py"))
        if (module := f"{top if top == 'awsgd_rl' else f'awsgd_rl.{top}'}.{file.stem}")
        for name in imported(ast.parse(file.read_text()))
        if name.split(".")[0] == "awsgd_rl" and layer(name) > layer(module)
    ]
    assert [pair for pair in upward if pair[0] != "awsgd_rl.__init__"] == []  # it names all


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A fresh virtual environment with the built wheel in it, and its Python."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True
    )
    # The dependencies come from this environment: a plain path, so that its editable install of
    # the package (a .pth file) does not come along.
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run(
        [python, "-c", query], check=True, capture_output=True, text=True
    ).stdout.strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, folder


def run(python, folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_nothing_on_the_top_level(elsewhere):
    python, folder = elsewhere
    script = """
import importlib, pathlib, pkgutil
import awsgd_rl
assert "elsewhere" in awsgd_rl.__file__, awsgd_rl.__file__
names = [m.name for m in pkgutil.walk_packages(awsgd_rl.__path__, "awsgd_rl.")]
for name in names:
    importlib.import_module(name)
for name in ("envs", "agents", "benchmarks"):
    assert importlib.util.find_spec(name) is None, name
assert (pathlib.Path(awsgd_rl.__file__).parent / "py.typed").is_file()
print(*names)
"""
    result = run(python, folder, "-c", script)
    assert result.returncode == 0, result.stderr
    modules = {
        f"awsgd_rl.{file.stem}" if top == "awsgd_rl" else f"awsgd_rl.{top}.{file.stem}"
        for top in ["awsgd_rl", *MAPPED]
        for file in (ROOT / top).glob("*.py")
        if file.stem != "__init__"
    }
    assert modules <= set(result.stdout.split())


@pytest.mark.slow
def test_the_installed_package_trains_saves_and_evaluates_from_another_directory(elsewhere):
    python, folder = elsewhere
    script = folder / "venv" / "bin" / "awsgd-rl"
    trained = run(
        python, folder, script, "train", "--algo", "awsgd", "--env", "awsgd_rl/TrapGridworld-v0",
        "--env-kwargs", '{"size": 4, "traps": 1}', "--total-episodes", "200", "--out", "run",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    evaluated = run(python, folder, script, "evaluate", "run", "--episodes", "20")
    assert evaluated.returncode == 0, evaluated.stderr
    assert (folder / "run" / "results.json").is_file()
