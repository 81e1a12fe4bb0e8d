"""LLVM's linker for ELF files, which links code of devices too: found, and run."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ...runtime.errors import EngineError

_OLDEST = 15  # lld 14 refuses what LLVM makes for AMD's cards now
_NEWEST = 30  # of the versions that distributions put into the name


@cache
def find_lld() -> tuple[str, ...]:
    """The command of the linker. Raises EngineError that says what to install."""
    refused = ""
    for command in _candidates():
        version = _version(command)
        if version >= _OLDEST:
            return command
        refused = refused or f" ({' '.join(command)} is version {version or 'unknown'})"
    raise EngineError(f"--device rocm: there is no ld.lld of LLVM {_OLDEST} or newer{refused}: `pip install ziglang` "
                      "or `apt install lld-19`")  # fmt: skip


def _candidates() -> Iterator[tuple[str, ...]]:
    """Linkers that are here: on PATH, of ROCm, of the package ziglang."""
    names = ["ld.lld", *(f"ld.lld-{version}" for version in range(_NEWEST, _OLDEST - 1, -1))]
    for name in [*names, "/opt/rocm/llvm/bin/ld.lld"]:
        program = shutil.which(name)
        if program:
            yield (program,)
    spec = find_spec("ziglang")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = shutil.which("zig", path=folder)
        if program:
            yield (program, "ld.lld")


def _version(command: Sequence[str]) -> int:
    """The major version of a linker; 0 where it does not tell."""
    try:
        result = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"LLD (\d+)\.", result.stdout)
    return int(found[1]) if found else 0


def link(compiled: Path, options: Sequence[str]) -> bytes:
    """An object file linked. Raises EngineError with the linker's first complaint."""
    output = compiled.with_suffix(".linked")
    command = [*find_lld(), *options, str(compiled), "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode or not output.is_file():
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        why = next((line for line in lines if "error" in line), lines[0] if lines else "it gave no reason")
        raise EngineError(f"{' '.join(find_lld())} does not link the kernels: {why}")
    return output.read_bytes()
