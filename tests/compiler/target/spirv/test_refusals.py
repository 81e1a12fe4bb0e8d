"""What Vulkan cannot do is refused in one line that names it and the kernel; what a library holds is as specified."""
# mypy: ignore-errors

import struct

import pytest
import tvm
from tvm.tirx.script.builder import ir as T
from vulkan_kernels import compiled, vulkan_device_or_skip  # noqa: F401

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import barrier, launch, shared
from mlc_llm.compiler.target import resolve_target
from mlc_llm.compiler.target.spirv import module_bytes
from mlc_llm.runtime.errors import EngineError, UsageError


def one_launch(body, *, threads: int = 8, dtype: str = "float32"):
    with kernel("refused") as k:
        a = k.input("a", (64,), dtype)
        with k.body(), launch([1], threads) as (_, (thread,)):
            body(a, thread)
    return k.function


def store(value):
    return lambda a, thread: T.buffer_store(a, value(a, thread), [thread])


def two_barriers(a, thread):
    barrier()
    T.evaluate(T.tvm_storage_sync("global"))


def much_shared_memory(a, thread):
    staged = shared([16384])
    T.buffer_store(staged, a[thread], [thread * 1792 + 2048])
    barrier()
    T.buffer_store(a, staged[16383 - thread], [thread])


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (store(lambda a, thread: T.call_pure_extern("float32", "my_function", a[thread])), "function my_function"),
        (store(lambda a, thread: T.hypot(a[thread], a[thread])), "function hypotf"),
        (store(lambda a, thread: T.nextafter(a[thread], a[thread])), "nextafter"),
        (two_barriers, "a barrier for global memory"),
        (much_shared_memory, "57344 bytes of shared memory: the Vulkan target has 32768"),
    ],
)
@pytest.mark.usefixtures("vulkan_device")
def test_what_is_unknown_is_named(body, named: str) -> None:
    with pytest.raises(EngineError) as refused:
        compiled({"kernel": one_launch(body)})
    assert named in str(refused.value)
    assert "kernel kernel_kernel" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("vulkan_device")
def test_too_many_threads_are_refused() -> None:
    with pytest.raises(EngineError, match=r"takes 512 threads in a workgroup: the Vulkan target has 256"):
        compiled({"kernel": one_launch(store(lambda a, thread: a[thread] + T.float32(1)), threads=512)})


@pytest.mark.usefixtures("vulkan_device")
def test_small_scalars_are_refused() -> None:
    with kernel("small") as k:
        x, a = k.scalar("x", "float16"), k.input("a", (8,), "float16")
        with k.body(), launch([1], 8) as (_, (thread,)):
            T.buffer_store(a, x, [thread])
    with pytest.raises(EngineError, match="arguments of type float16"):
        compiled({"kernel": k.function})


@pytest.mark.usefixtures("vulkan_device")
def test_code_generation_leaves_tvm_as_it_was() -> None:
    compiled({"kernel": one_launch(store(lambda a, thread: a[thread] + T.float32(1)))})
    assert tvm.get_global_func("target.build.vulkan", allow_missing=True) is None


def test_variants_are_unknown() -> None:
    with pytest.raises(UsageError, match="vulkan:fast is unknown"):
        resolve_target("vulkan:fast")


@pytest.mark.usefixtures("vulkan_device")
def test_a_module_is_laid_out_as_the_plug_in_reads_it() -> None:
    with kernel("layout") as k:
        n, x = k.scalar("n", "int64"), k.scalar("x", "float32")
        a = k.input("a", (n,), "float16")
        with k.body(), launch([n, 2], [4, 8]) as ((block, _), (thread, _)):
            T.buffer_store(a, T.cast(x + T.cast(thread, "float32"), "float16"), [block])
    (launched,) = compiled({"kernel": k.function}).launches
    data = module_bytes([launched])

    def take(layout: str):
        nonlocal data
        values = struct.unpack_from(layout, data)
        data = data[struct.calcsize(layout) :]
        return values if len(values) > 1 else values[0]

    def string() -> bytes:
        return take(f"<{take('<Q')}s")

    assert take("<8s") == b"MLCSPV1\n"
    assert take("<Q") == 1
    assert string() == b"kernel_kernel"
    arguments = [take("<BBH") for _ in range(take("<Q"))]
    assert sorted(arguments) == [(0, 64, 1), (2, 32, 1), (3, 64, 1)]
    assert [string() for _ in range(take("<Q"))] == [b"blockIdx.x", b"blockIdx.y", b"threadIdx.x", b"threadIdx.y"]
    assert take("<3I") == (4, 8, 1)
    assert take("<I") == 1 << 1  # 16-bit storage
    assert take("<I") in (12, 16)  # bytes of push constants, as the arguments are ordered
    assert string() == launched.spirv
    assert data == b""
