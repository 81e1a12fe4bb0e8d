"""Drivers of devices that are not here: shared libraries from the C files beside this one, which take notes of what a
program asks of them."""

import shutil
import subprocess
from pathlib import Path

import pytest


def build_stub(source: str, folder: Path, name: str, *options: str) -> None:
    """Compile a stub under the name that programs look for. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("this machine has no C compiler")
    path = Path(__file__).parent / source
    command = [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", *options, str(path), "-o", str(folder / name)]
    subprocess.run(command, check=True)
