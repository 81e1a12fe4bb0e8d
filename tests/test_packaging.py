"""What `pip install .` installs: every package, the type marker, and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("cli", "serve", "compiler", "runtime", "templates")


def build(folder: Path, plugins: str) -> Path:
    """The wheel built from a copy of the tree, so that building leaves nothing behind."""
    root, source = Path(__file__).parent.parent, folder / "source"
    for name in (*PACKAGES, "tests", "docs", "scripts", "benchmarks"):
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in root.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, check=True, cwd=source, timeout=600, env={**os.environ, "MLC_PLUGINS": plugins})
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel without plug-ins."""
    return zipfile.ZipFile(build(tmp_path_factory.mktemp("wheel"), "none"))


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile, root: Path) -> None:
    sources = [path for name in PACKAGES for path in (root / name).rglob("*") if path.is_file()]
    sources = [path for path in sources if "__pycache__" not in path.parts]
    expected = {f"mlc_llm/{path.relative_to(root)}" for path in sources}
    expected |= {"mlc_llm/__init__.py", "mlc_llm/__main__.py", "mlc_llm/py.typed"}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_the_wheel_has_both_commands_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(entry_points).decode()
    assert "mlc = mlc_llm.cli.main:main" in text
    assert "mlc_llm = mlc_llm.cli.main:main" in text
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_a_wheel_without_plug_ins_is_for_every_machine(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename
    assert wheel.filename.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_a_wheel_with_plug_ins_is_for_its_platform_and_needs_no_compiler(tmp_path: Path) -> None:
    wheel = build(tmp_path, "opencl")
    assert "-py3-none-linux_" in wheel.name
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(command, check=True, timeout=600)
    program = "from mlc_llm.runtime.devices import plugin; plugin.load('opencl'); print(plugin.__file__)"
    environment = {**os.environ, "PATH": "", "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path,
                           env=environment, timeout=600)  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "site")
