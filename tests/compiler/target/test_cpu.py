"""CPU targets: what a processor's name means, and which integer products its kernels are made of."""

import re
from pathlib import Path
from typing import Any

import pytest
import tvm

from mlc_llm.compiler.kernels.cpu.dot import integer_dot
from mlc_llm.compiler.kernels.cpu.integer_matmul import gemv
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import GroupStorage
from mlc_llm.compiler.target import CompileTarget, cpu, resolve_target
from mlc_llm.runtime.errors import UsageError

X86, LINUX_ARM, MAC = "x86_64-linux-gnu", "aarch64-linux-gnu", "arm64-apple-darwin"


@pytest.mark.parametrize(
    ("processor", "host", "lanes", "registers", "converts"),
    [
        ("znver4", X86, 16, 32, True),
        ("alderlake", X86, 8, 16, True),
        ("x86-64-v3", X86, 8, 16, True),
        ("x86-64-v2", X86, 4, 16, False),
        ("x86-64", X86, 4, 16, False),
        ("cortex-a53", LINUX_ARM, 4, 32, True),
        ("apple-m1", MAC, 4, 32, True),
        ("apple-m1", "aarch64-apple-darwin", 4, 32, True),
    ],
)
def test_registers_of_a_processor(processor: str, host: str, lanes: int, registers: int, converts: bool) -> None:
    target = resolve_target(f"cpu:{processor}", host)
    assert (target.lanes, target.vector_registers, target.converts_float16) == (lanes, registers, converts)


@pytest.mark.parametrize(
    ("processor", "host", "products", "products_of_4_bits"),
    [
        ("znver4", X86, "vpdpbusd x 16", "vpdpbusd x 16"),
        ("alderlake", X86, "vpdpbusd x 8", "vpdpbusd x 8"),
        ("skylake-avx512", X86, "vpmaddwd x 16", "vpmaddubsw x 16"),
        ("znver3", X86, "vpmaddwd x 8", "vpmaddubsw x 8"),
        ("x86-64-v3", X86, "vpmaddwd x 8", "vpmaddubsw x 8"),
        ("x86-64-v2", X86, "vpmaddwd x 4", "vpmaddubsw x 4"),
        ("x86-64", X86, "vpmaddwd x 4", "vpmaddwd x 4"),
        ("neoverse-v1", LINUX_ARM, "usdot x 4", "usdot x 4"),
        ("neoverse-n1", LINUX_ARM, "sdot x 4", "sdot x 4"),
        ("cortex-a76", LINUX_ARM, "sdot x 4", "sdot x 4"),
        ("apple-m1", MAC, "sdot x 4", "sdot x 4"),
        ("cortex-a72", LINUX_ARM, "float32", "float32"),
    ],
)
def test_products_of_a_processor(processor: str, host: str, products: str, products_of_4_bits: str) -> None:
    target = resolve_target(f"cpu:{processor}", host)
    for bits, activation_bits, single, expected in [
        (8, 16, True, products),
        (8, 8, False, products),
        (4, 16, False, products),
        (4, 16, True, products_of_4_bits),
        (4, 8, False, products_of_4_bits),
    ]:
        dot = integer_dot(target, bits, activation_bits, single=single)
        assert (f"{dot.name} x {dot.lanes}" if dot else "float32") == expected


def compiled_for(target: CompileTarget) -> Any:
    """A small kernel with integer products."""
    dot = integer_dot(target, 8, 16, single=True)
    assert dot is not None
    function = gemv(Matmul(32, 32, GroupStorage(8, 32, "float16", 128)), dot, 16)
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    return tvm.compile(module, target=target.tvm_target()).mod


def test_avx_vnni_needs_no_avx512() -> None:
    assembly = compiled_for(resolve_target("cpu:alderlake")).inspect_source("asm")
    assert "{vex}\tvpdpbusd" in assembly
    assert not re.search(r"%zmm|%[xy]mm(1[6-9]|[23]\d)", assembly)


def test_code_for_a_mac_is_compiled_anywhere(tmp_path: Path) -> None:
    compiled_for(resolve_target("cpu:apple-m1", MAC)).write_to_file(str(tmp_path / "kernel.o"), "o")
    magic, processor = (tmp_path / "kernel.o").read_bytes()[:8][:4], (tmp_path / "kernel.o").read_bytes()[4:8]
    assert (magic.hex(), processor.hex()) == ("cffaedfe", "0c000001")  # Mach-O of 64 bits, arm64


def test_instruction_sets_that_a_hypervisor_hides_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_features", lambda: frozenset({"sse2", "ssse3", "avx", "avx2", "f16c", "fma"}))
    monkeypatch.setattr(cpu, "native_triple", lambda: X86)
    monkeypatch.setattr("tvm.target.codegen.llvm_get_system_cpu", lambda: "znver4")
    target = resolve_target("cpu", X86)
    assert target.cpu_features == ("avx", "avx2", "f16c", "fma", "sse2", "ssse3")
    assert target.lanes == 8
    assert {"-avx512f", "-avx512vnni", "-sse4.2"} <= set(target.attributes["mattr"])


def test_an_unknown_processor_is_refused() -> None:
    with pytest.raises(UsageError, match="cpu:nonsense: LLVM knows no such processor"):
        resolve_target("cpu:nonsense")
