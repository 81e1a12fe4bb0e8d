"""The processor beside a device: what runs on it is compiled for any of its architecture."""

from ...runtime.errors import UsageError
from .cpu import native_triple

_BASELINES = {"x86_64": "x86-64"}  # LLVM's name of the oldest processor; "generic" elsewhere


def host_triple(host: str) -> str:
    """The triple of a device's host: `--host`, or this machine's for "auto". Raises UsageError where LLVM has none."""
    if host == "auto":
        return native_triple()
    from tvm.target import codegen

    architecture = host.split("-")[0]
    if "-" not in host or not codegen.llvm_is_valid_cpu(_BASELINES.get(architecture, "generic"), host):
        raise UsageError(f"--host {host}: LLVM knows no such triple; expected one as aarch64-linux-gnu")
    return host
