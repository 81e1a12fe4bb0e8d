"""What `mlc doctor` finds out about a machine."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..runtime.devices import detect
from ..runtime.devices.detect import DriverProblem, FoundDevice
from ..runtime.errors import MLCError

_PACKAGES = {"mlc": "mlc-aot", "tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}
# What code is compiled for to see whether it can be: an architecture where there is no usual one.
_COMPILED_FOR = {"rocm": "rocm:gfx1100"}

_BACKENDS = ("x86_64", "aarch64", "riscv64", "amdgcn", "nvptx64", "wasm32")  # of LLVM's, those that libraries may need


@dataclass(frozen=True)
class Kind:
    """A kind of device: whether models run on it here, and are compiled for it."""

    kind: str
    runs_by: str  # "plug-in, built here"
    problem: str  # why none runs here; "": some do
    compile_problem: str


@dataclass(frozen=True)
class Tested:
    """A device and what the self-test says."""

    device: FoundDevice
    test: str  # "passed", "memory only: ...", "failed: ..."

    @property
    def works(self) -> bool:
        return not self.test.startswith("failed")

    def to_dict(self) -> dict[str, Any]:
        return {"device": str(self.device), **asdict(self.device), "test": self.test, "works": self.works}


@dataclass(frozen=True)
class Diagnosis:
    """What there is."""

    auto: str
    versions: dict[str, str]
    tools: dict[str, str]
    kinds: list[Kind]
    devices: list[Tested] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        kinds = [{**asdict(kind), "runs": not kind.problem, "compiles": not kind.compile_problem}
                 for kind in self.kinds]  # fmt: skip
        return {"auto": self.auto, "versions": self.versions, "tools": self.tools, "kinds": kinds,
                "devices": [one.to_dict() for one in self.devices]}  # fmt: skip


def diagnose(kinds: tuple[str, ...], number: int | None, report: Callable[[str], None]) -> Diagnosis:
    """Look at devices of some kinds, all of them or the one of a number, and test each.

    `report` is told what is being done. Nothing that is wrong with the machine raises: it is what the answer says.
    """
    looked = [_look(kind, number, report) for kind in kinds]
    tested = [one for _, some in looked for one in some]
    return Diagnosis(detect.best(), _versions(), _tools(), [kind for kind, _ in looked], tested)


def _look(kind: str, number: int | None, report: Callable[[str], None]) -> tuple[Kind, list[Tested]]:
    """A kind of device, and its devices, tested."""
    report(f"looking at {kind}")
    driving = detect.driving(kind)
    compile_problem = reason(lambda: _require_compiler(kind))
    try:
        devices = [one for one in detect.found(kind) if number in (None, one.index)]
    except DriverProblem as problem:
        return Kind(kind, driving.how, str(problem), compile_problem), []
    described = Kind(kind, driving.how, driving.problem, compile_problem)
    if not devices:
        return described, []
    report(f"testing {', '.join(map(str, devices))}")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{kind}.so"
        without = driving.problem or compile_problem or reason(lambda: _build(devices[0], library))
        return described, [Tested(device, _test(device, library, without)) for device in devices]


def reason(do: Callable[[], object]) -> str:
    """Why something cannot be done, in one line; "" if it can."""
    try:
        do()
    except MLCError as error:
        return str(error)
    except Exception as error:  # TVM's errors have no class of their own
        from ..runtime.tvm_runtime import one_line

        return one_line(error)
    return ""


def _require_compiler(kind: str) -> None:
    from ..compiler.link import find_linker
    from ..compiler.target import resolve_target

    find_linker(resolve_target(_COMPILED_FOR.get(kind, kind)).host_triple)


def _build(device: FoundDevice, library: Path) -> None:
    from ..compiler.self_test import build_self_test

    # the cards of this machine are what code is wanted for
    build_self_test(f"{device.kind}:native" if device.kind in ("cuda", "rocm") else device.kind, library)


def _test(device: FoundDevice, library: Path, without: str) -> str:
    """The self-test's answer. `without`: why there is no library of kernels."""
    from ..runtime.devices import self_test

    problem = self_test.problem(str(device), None if without else library)
    if problem:
        return f"failed: {problem}"
    return f"memory only: {without}" if without else "passed"


def _versions() -> dict[str, str]:
    return {**{name: _version(package) for name, package in _PACKAGES.items()}, "python": sys.version.split()[0]}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _tools() -> dict[str, str]:
    """What compiles and links here: the program or the version, or what to do to get it."""

    def llvm() -> str:
        from tvm.target import codegen

        known = codegen.llvm_get_targets()
        return f"{codegen.llvm_version_major()}, for {', '.join(name for name in _BACKENDS if name in known)}"

    def cuda() -> str:
        from ..compiler.target.cuda_compilers import find_compiler

        return find_compiler().name

    def lld() -> str:
        from ..compiler.target.lld import find_lld

        return " ".join(find_lld())

    def linker() -> str:
        from ..compiler.link import find_linker
        from ..compiler.target.cpu import native_triple

        return find_linker(native_triple()).command

    def plugins() -> str:
        found = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "")
        return found or "none: install g++ or clang++, or name one in $CXX"

    asked = {"LLVM": llvm, "C compiler": linker, "C++ compiler": plugins, "CUDA compiler": cuda, "lld": lld,
             "ziglang": lambda: _version("ziglang")}  # fmt: skip
    return {name: _answer(ask) for name, ask in asked.items()}


def _answer(ask: Callable[[], str]) -> str:
    answers: list[str] = []
    problem = reason(lambda: answers.append(ask()))
    return f"none: {problem}" if problem else answers[0]
