"""The machine that loads a library: its system, and the processor beside a device, any of its architecture."""

import re
from dataclasses import dataclass

from ...runtime.errors import UsageError
from .cpu import native_triple

_BASELINES = {"x86_64": "x86-64"}  # LLVM's name of the oldest processor; "generic" elsewhere
_ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}  # spellings of triples -> the one that is used here
LIBRARY_SUFFIXES = (".so", ".dylib")  # of a Linux, of Apple's systems
# The oldest systems whose Metal has MSL 2.3, in which TVM compiles kernels
_SYSTEM_VERSIONS = {"macos": "11.0", "ios": "14.0"}


@dataclass(frozen=True)
class Host:
    """The machine whose processor loads a library, as its triple says."""

    triple: str
    architecture: str  # "x86_64", "aarch64"
    system: str  # "linux", "macos", "ios"
    version: str = ""  # of an Apple system: the oldest one that loads the library
    abi: str = ""  # of a Linux: "gnu", "musl", "gnueabihf"

    @property
    def is_apple(self) -> bool:
        """Whether its libraries are Mach-O files."""
        return self.system != "linux"

    @property
    def suffix(self) -> str:
        """What a library's file name ends in."""
        return LIBRARY_SUFFIXES[self.is_apple]


def parse_host(triple: str) -> Host:
    """What a triple like "aarch64-linux-gnu" says. Raises UsageError for systems that libraries are not linked for."""
    name, *rest = triple.lower().split("-")
    architecture = _ARCHITECTURES.get(name, name)
    for part in rest:
        if match := re.fullmatch(r"(macosx|macos|darwin|ios)(\d+(?:\.\d+){0,2})?", part):
            system = "ios" if match[1] == "ios" else "macos"
            version = match[2] if match[2] and match[1] != "darwin" else _SYSTEM_VERSIONS[system]
            return Host(triple, architecture, system, version)
        if part == "linux" and rest[-1] != "android":
            abi = rest[-1] if rest[-1] != "linux" else "gnu"
            return Host(triple, architecture, "linux", abi=abi)
    raise UsageError(
        f"--host {triple}: libraries are linked for Linux, macOS and iOS; "
        "expected a triple like x86_64-linux-gnu, aarch64-linux-gnu, arm64-apple-macos or arm64-apple-ios"
    )


def host_triple(host: str) -> str:
    """The triple of a device's host: `--host`, or this machine's for "auto". Raises UsageError where LLVM has none."""
    if host == "auto":
        return native_triple()
    from tvm.target import codegen

    architecture = host.split("-")[0]
    if "-" not in host or not codegen.llvm_is_valid_cpu(_BASELINES.get(architecture, "generic"), host):
        raise UsageError(f"--host {host}: LLVM knows no such triple; expected one as aarch64-linux-gnu")
    return host
