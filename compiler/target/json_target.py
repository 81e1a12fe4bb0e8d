"""`--device` as TVM describes targets: {"kind": "cuda", "arch": "sm_90", "host": {"mtriple": "aarch64-linux-gnu"}}.

What changes the library: the architecture or processor, the host's triple, the instruction sets of a processor
("mattr"), limits of workgroups that are lower than usual, on Vulkan the lack of float16 and cooperative matrices, and
"largest_buffer", which is ours: bytes of a tensor, larger weights are several. What else TVM knows of a kind may be
there.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.errors import UsageError
from .cpu import cpu_target
from .host import parse_host
from .target import NO_LIMIT, CompileTarget, GpuTraits

_MAX_CHARACTERS = 1 << 16
_VARIANTS = {"cuda": "arch", "rocm": "mcpu", "opencl": "device"}  # kind -> the attribute that `--device kind:` names
_THREADS, _SHARED = ("max_num_threads", "max_threads_per_block"), "max_shared_memory_per_block"
# limits of workgroups -> what the kernels need
_LIMITS = {**dict.fromkeys(_THREADS, GpuTraits().max_threads), _SHARED: GpuTraits().shared_bytes}
_BUFFER, _LEAST_BUFFER = "largest_buffer", 1 << 20
_FLOAT16 = ("supports_float16", "supports_16bit_buffer")
_INSTRUCTION_SET = re.compile(r"[+-][A-Za-z0-9._-]+")

Resolve = Callable[[str, str, str], CompileTarget]  # (kind, variant, host)


def is_json(device: str) -> bool:
    """Whether `--device` is a target's description, or names a file of one."""
    return device.lstrip().startswith("{") or device.endswith(".json")


def resolve_json(device: str, host: str, resolve: Resolve) -> CompileTarget:
    """What a description means; `resolve` makes the target of a kind. Raises UsageError, and what `resolve` raises."""
    kind, given = _read(device)
    host = _host(kind, given, host)
    given = {name: value for name, value in given.items() if name not in ("host", "mtriple", "keys", "tag")}
    if kind in ("llvm", "cpu"):
        return _with_attributes(_processor(given, host), given)
    variant = _text(kind, given, _VARIANTS[kind]) if kind in _VARIANTS else ""
    if kind == "vulkan" and given.get("supports_cooperative_matrix") is True:
        variant = "cooperative"
    if kind == "metal" and host != "auto" and parse_host(host).system == "ios":
        variant = "ios"
    target = resolve(kind, variant, host)
    usual = target.gpu or GpuTraits()
    _limit(kind, given, target)
    traits = replace(
        usual,
        largest_buffer=_buffer(kind, given, usual.largest_buffer),
        max_threads=min(usual.max_threads, *(given.get(name, usual.max_threads) for name in _THREADS)),
        shared_bytes=min(usual.shared_bytes, given.get(_SHARED, usual.shared_bytes)),
    )
    float16 = target.converts_float16 and all(given.get(name, True) for name in _FLOAT16)
    return _with_attributes(replace(target, gpu=traits, converts_float16=float16), given)


def _read(device: str) -> tuple[str, dict[str, Any]]:
    """The kind and the other attributes of a description."""
    what, text = "--device", device
    if not device.lstrip().startswith("{"):
        what = f"--device {device:.200}"
        try:
            with Path(device).expanduser().open(encoding="utf-8") as file:
                text = file.read(_MAX_CHARACTERS + 1)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{what} cannot be read: {reason}: expected a file with a target in JSON") from None
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"{what}: a target in JSON has at most {_MAX_CHARACTERS} characters")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is not valid JSON ({error}): expected a target like "
                         '{"kind": "cuda", "arch": "sm_90"}') from None  # fmt: skip
    if not isinstance(given, dict) or not isinstance(given.get("kind"), str):
        raise UsageError(f'{what}: a target in JSON is an object that names its kind, like {{"kind": "cuda"}}')
    return given.pop("kind"), given


def _host(kind: str, given: dict[str, Any], host: str) -> str:
    """The host's triple: what `--host` says, else what the description says."""
    inside = given.get("mtriple" if kind in ("llvm", "cpu") else "host")
    if isinstance(inside, dict):
        inside = inside.get("mtriple")
    if inside is None:
        return host
    if not isinstance(inside, str):
        raise UsageError(f'--device {kind}: its host is {inside!r:.80}: expected {{"mtriple": "aarch64-linux-gnu"}}')
    if host not in ("auto", inside):
        raise UsageError(f"--host {host}: the target in --device names another host, {inside}: leave one of them out")
    return inside


def _processor(given: dict[str, Any], host: str) -> CompileTarget:
    """The processor that a description means; takes what it has used from `given`."""
    sets = given.pop("mattr", [])
    if not isinstance(sets, list) or not all(isinstance(s, str) and _INSTRUCTION_SET.fullmatch(s) for s in sets):
        raise UsageError(f'--device llvm: "mattr" is {sets!r:.80}: expected a list like ["-avx512f", "+dotprod"]')
    return cpu_target(_text("llvm", given, "mcpu") or "native", host, sets)


def _text(kind: str, given: dict[str, Any], name: str) -> str:
    """An attribute, taken from `given`; empty where there is none."""
    value = given.pop(name, "")
    if not isinstance(value, str):
        raise UsageError(f'--device {kind}: "{name}" is {value!r:.80}: expected text')
    return value


def _buffer(kind: str, given: dict[str, Any], usual: int) -> int:
    """Bytes of the largest tensor, taken from `given`."""
    value = given.pop(_BUFFER, usual)
    if isinstance(value, bool) or not isinstance(value, int) or not _LEAST_BUFFER <= value <= NO_LIMIT:
        raise UsageError(f'--device {kind}: "{_BUFFER}" is {value!r:.80}: expected at least {_LEAST_BUFFER} bytes')
    return value


def _limit(kind: str, given: dict[str, Any], target: CompileTarget) -> None:
    """Check the limits of workgroups in `given`, and lower them to what the target's kernels keep to."""
    for name, least in _LIMITS.items():
        if name not in given:
            continue
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f'--device {kind}: "{name}" is {value!r:.80}: the kernels need {least}')
        given[name] = min(value, target.attributes.get(name, value))


def _with_attributes(target: CompileTarget, given: dict[str, Any]) -> CompileTarget:
    """The target with more attributes, if TVM knows them."""
    target = replace(target, attributes={**target.attributes, **given})
    try:
        target.tvm_target()
    except (ValueError, TypeError) as error:
        reason = str(error).partition(" Target creation")[0].strip().splitlines()[-1]
        raise UsageError(f"--device {target.attributes['kind']}: {reason}") from None
    return target
