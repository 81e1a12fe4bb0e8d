"""The devices that Vulkan's loader knows, by a few calls of its C interface (https://registry.khronos.org/vulkan/)."""

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .detect import DriverProblem, FoundDevice

_LIBRARIES = ("libvulkan.so.1", "libvulkan.so", "libvulkan.1.dylib", "libMoltenVK.dylib")
_ADVICE = "install your card's driver (Debian: apt install mesa-vulkan-drivers)"
_API_1_1, _API_1_2 = 1 << 22 | 1 << 12, 1 << 22 | 2 << 12
_COMPUTE = 2  # VK_QUEUE_COMPUTE_BIT
_LOCAL = 1  # VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
_PROCESSOR = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
_RANKS = {2: 0, 1: 1, 3: 2, _PROCESSOR: 4}  # by VkPhysicalDeviceType, as the plug-in ranks: discrete, integrated, ...
_PROPERTIES_2, _DRIVER_PROPERTIES = 1000059001, 1000196000  # VkStructureType
_MOST = 64  # devices, families of queues
_PROPERTIES = 824  # sizeof(VkPhysicalDeviceProperties)


class _ApplicationInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("name", ctypes.c_char_p), ("version", ctypes.c_uint32),
        ("engine", ctypes.c_char_p), ("engine_version", ctypes.c_uint32), ("api", ctypes.c_uint32),
    )  # fmt: skip


class _InstanceCreateInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint32),
        ("application", ctypes.POINTER(_ApplicationInfo)), ("layers", ctypes.c_uint32),
        ("layer_names", ctypes.c_void_p), ("extensions", ctypes.c_uint32), ("extension_names", ctypes.c_void_p),
    )  # fmt: skip


class _Chained(ctypes.Structure):
    """VkPhysicalDeviceProperties2 and VkPhysicalDeviceDriverProperties: a type, a pointer to the next, and a body."""

    _fields_ = (("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("body", ctypes.c_ubyte * 1024))


def devices() -> list[FoundDevice]:
    """The devices that compute with Vulkan 1.1, in the order of the plug-in. Raises DriverProblem for none."""
    with _instance() as (library, instance):
        count = ctypes.c_uint32(_MOST)
        handles = (ctypes.c_void_p * _MOST)()
        code = library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
        if code < 0 or not count.value:
            raise DriverProblem(f"no Vulkan device: the loader finds no driver; {_ADVICE}")
        described = [_describe(library, handle) for handle in handles[: count.value]]
    usable = sorted((one for one in described if one), key=lambda one: one[0])
    if not usable:
        raise DriverProblem(f"none of {count.value} Vulkan devices computes with Vulkan 1.1: {_ADVICE}")
    return [FoundDevice("vulkan", i, **facts) for i, (_, facts) in enumerate(usable)]


@contextmanager
def _instance() -> Iterator[tuple[Any, ctypes.c_void_p]]:
    library = next(filter(None, map(_open, _LIBRARIES)), None)
    if library is None:
        raise DriverProblem(f"no Vulkan: libvulkan.so.1 is not there; {_ADVICE}")
    application = _ApplicationInfo(type=0, api=_API_1_2)
    create = _InstanceCreateInfo(type=1, application=ctypes.pointer(application))
    instance = ctypes.c_void_p()
    code = library.vkCreateInstance(ctypes.byref(create), None, ctypes.byref(instance))
    if code:
        raise DriverProblem(f"Vulkan does not start: vkCreateInstance fails with {code}; {_ADVICE}")
    try:
        yield library, instance
    finally:
        library.vkDestroyInstance(instance, None)


def _open(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _describe(library: Any, address: int | None) -> tuple[int, dict[str, Any]] | None:
    """Rank and facts of a device; None for one that does not compute with Vulkan 1.1."""
    handle = ctypes.c_void_p(address)
    properties = (ctypes.c_ubyte * 2048)()
    library.vkGetPhysicalDeviceProperties(handle, properties)
    api, _, _, _, kind = struct.unpack_from("=5I", properties)
    count, families = ctypes.c_uint32(_MOST), (ctypes.c_uint32 * 6 * _MOST)()
    library.vkGetPhysicalDeviceQueueFamilyProperties(handle, ctypes.byref(count), families)
    if api < _API_1_1 or not any(family[0] & _COMPUTE for family in families[: count.value]):
        return None
    memory = (ctypes.c_ubyte * 1024)()
    library.vkGetPhysicalDeviceMemoryProperties(handle, memory)
    (heaps,) = struct.unpack_from("=I", memory, 260)
    sizes = [struct.unpack_from("=QI", memory, 264 + 16 * i) for i in range(min(heaps, 16))]
    local = [size for size, flags in sizes if flags & _LOCAL]
    facts = {
        "name": _text(bytes(properties)[20:276]),
        "memory": max(local, default=0),
        "driver": _driver(library, handle) if api >= _API_1_2 else "",
        "is_processor": kind == _PROCESSOR,
    }
    return _RANKS.get(kind, 3), facts


def _driver(library: Any, handle: ctypes.c_void_p) -> str:
    """The driver's name and version, which Vulkan 1.2 tells."""
    driver = _Chained(type=_DRIVER_PROPERTIES)
    properties = _Chained(type=_PROPERTIES_2, next=ctypes.cast(ctypes.byref(driver), ctypes.c_void_p))
    library.vkGetPhysicalDeviceProperties2(handle, ctypes.byref(properties))
    body = bytes(driver.body)  # the driver's number, then two texts of 256 bytes
    return f"{_text(body[4:260])} {_text(body[260:516])}".strip()


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace")
