"""ROCm targets: what their names mean, and the code objects that a library carries. No ROCm and no card is needed."""

import re
import struct
from pathlib import Path
from typing import Any

import pytest
import tvm
from code_objects import code_objects, instructions, symbols
from small_kernels import THREADS, small_module
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import barrier, launch, shared
from mlc_llm.compiler.target import code_generation, lld, resolve_target, rocm
from mlc_llm.runtime.errors import EngineError, UsageError

_HOST = "x86_64-linux-gnu"
_MACHINES = {"gfx90a": 0x3F, "gfx942": 0x4C, "gfx1030": 0x36, "gfx1100": 0x41, "gfx1201": 0x4E}  # EF_AMDGPU_MACH


@pytest.fixture(autouse=True)
def _linker() -> None:
    try:
        lld.find_lld()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("variant", "architectures", "subgroup"),
    [
        ("gfx1100", ["gfx1100"], 32),
        ("gfx942", ["gfx942"], 64),
        ("gfx90a, gfx942,gfx90a", ["gfx90a", "gfx942"], 64),
        ("gfx1030,gfx1201", ["gfx1030", "gfx1201"], 32),
        ("gfx1100,gfx942", ["gfx1100", "gfx942"], 0),
    ],
)
def test_architectures_of_a_name(variant: str, architectures: list[str], subgroup: int) -> None:
    target = resolve_target(f"rocm:{variant}", _HOST)
    assert target.device == "rocm"
    assert target.attributes["keys"] == ["rocm", "gpu", *architectures]
    assert target.gpu is not None
    assert (target.gpu.max_threads, target.gpu.subgroup) == (256, subgroup)


@pytest.mark.parametrize("name", ["gfx1", "gfx9999", "rdna3", "gfx1100,", "sm_90", "gfx11-generic", "GFX1100"])
def test_an_unknown_architecture_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^--device rocm:.*: LLVM knows no architecture .*; expected one as gfx90a"):
        resolve_target(f"rocm:{name}")


@pytest.mark.parametrize("name", ["rocm", "rocm:native"])
def test_without_a_name_the_cards_of_this_machine_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocm, "architectures_here", lambda: ["gfx1100", "gfx1100"])
    assert resolve_target(name, _HOST).attributes["mcpu"] == "gfx1100"
    monkeypatch.setattr(rocm, "architectures_here", list)
    with pytest.raises(UsageError, match=r"^--device rocm: this machine has no AMD card; name architectures, as rocm:"):
        resolve_target(name, _HOST)


def _exported(device: str, folder: Path, module: tvm.IRModule) -> dict[str, bytes]:
    """The code objects of a library of `module`, by architecture."""
    target = resolve_target(device, _HOST)
    with code_generation(target):
        tvm.compile(module, target=target.tvm_target()).export_library(str(folder / "kernels.so"))
    return code_objects((folder / "kernels.so").read_bytes())


@pytest.mark.parametrize("device", ["gfx90a,gfx942,gfx1030,gfx1100,gfx1201"])
def test_a_library_carries_a_code_object_for_each_architecture(
    device: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    objects = _exported(f"rocm:{device}", tmp_path, small_module())
    assert list(objects) == device.split(",")
    for name, code in objects.items():
        # ELF of 64 bits, AMD's HSA as the system, version 5 of its code objects
        assert code[:9] == b"\x7fELF\x02\x01\x01\x40\x03"
        machine, flags = struct.unpack_from("<H", code, 18)[0], struct.unpack_from("<I", code, 48)[0]
        assert (machine, flags & 0xFF) == (224, _MACHINES[name])  # EM_AMDGPU
        defined = dict(symbols(code))
        assert {"turned_rows_kernel.kd", "shuffled_sums_kernel.kd"} <= set(defined)
        assert 0 not in defined.values()
        for note in (b"amdhsa.kernels", b"turned_rows_kernel", f"amdgcn-amd-amdhsa-hcc-{name}".encode()):
            assert note in code
        text = instructions(code, name, tmp_path)
        if text is not None:  # every instruction is one that a card of the architecture has
            assert re.search(r"<turned_rows_kernel>:\n\s+\w+", text)
            assert "s_endpgm" in text
            assert "<unknown>" not in text
    assert capfd.readouterr().err == ""


def _kernel_of(function: Any) -> tvm.IRModule:
    """A module with a kernel that applies a function to numbers."""
    with kernel("apply") as k:
        x, y = k.input("x", (THREADS,), "float32"), k.input("y", (THREADS,), "float32")
        with k.body(), launch([1], THREADS) as (_, (i,)):
            T.buffer_store(y, function(x[i]), [i])
    return tvm.IRModule({"apply": k.function.with_attr("global_symbol", "apply")})


_FUNCTIONS = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf", "floor", "abs")


def test_a_barrier_waits_for_shared_memory(tmp_path: Path) -> None:
    """The instruction alone waits for no write on newer cards; HIP's barrier has fences around it."""
    with kernel("turned") as k:
        x, y = k.input("x", (THREADS,), "float32"), k.input("y", (THREADS,), "float32")
        with k.body(), launch([1], THREADS) as (_, (thread,)):
            place = shared([THREADS])
            T.buffer_store(place, x[thread], [thread])
            barrier()
            T.buffer_store(y, place[THREADS - 1 - thread], [thread])
    module = tvm.IRModule({"turned": k.function.with_attr("global_symbol", "turned")})
    for name, code in _exported(f"rocm:{','.join(_MACHINES)}", tmp_path, module).items():
        text = instructions(code, name, tmp_path)
        if text is None:
            pytest.skip("there is no llvm-objdump")
        waits = r"\tds_(write|store)_b32 .*(lgkmcnt\(0\)|s_wait_dscnt 0x0).*\ts_barrier.*\tds_(read|load)_b32 "
        assert re.search(waits, text, re.DOTALL), f"{name}: {text}"
        assert not re.search(r"\t(buffer_gl0_inv|global_inv)", text)  # what is read of other memory stays on its way


def test_functions_that_kernels_may_use(tmp_path: Path) -> None:
    def total(x: Any) -> Any:
        return sum((getattr(tirx, name)(x) for name in _FUNCTIONS), tirx.pow(x, x))

    for code in _exported("rocm:gfx1100,gfx942", tmp_path, _kernel_of(total)).values():
        assert 0 not in dict(symbols(code)).values()


def test_a_function_that_cards_lack_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^.*ld.lld.* does not link the kernels: .*undefined symbol: tanf$"):
        _exported("rocm:gfx1100", tmp_path, _kernel_of(tirx.tan))


def test_without_a_linker_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    lld.find_lld.cache_clear()
    monkeypatch.setattr(lld, "_candidates", lambda: iter([("old-lld",)]))
    monkeypatch.setattr(lld, "_version", lambda _: 14)
    with pytest.raises(EngineError, match=r"LLVM 15 or newer \(old-lld is version 14\): `pip install ziglang` or"):
        resolve_target("rocm:gfx1100")
    lld.find_lld.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("index", range(4))
def test_every_linker_of_this_machine_will_do(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [command for command in lld._candidates() if lld._version(command) >= 15]
    if index >= len(found):
        pytest.skip(f"this machine has {len(found)} linkers")
    monkeypatch.setattr(lld, "find_lld", lambda: found[index])
    (code,) = _exported("rocm:gfx1100", tmp_path, small_module()).values()
    assert "turned_rows_kernel.kd" in dict(symbols(code))
