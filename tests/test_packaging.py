"""What `pip install .` installs: every package, the type marker, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("cli", "serve", "compiler", "runtime", "templates")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from a copy of the tree, so that building leaves nothing behind."""
    root = Path(__file__).parent.parent
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "tests", "docs", "scripts", "benchmarks"):
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in root.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(source), "."]
    subprocess.run(command, check=True, cwd=source, timeout=300)
    (path,) = source.glob("*.whl")
    return zipfile.ZipFile(path)


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
