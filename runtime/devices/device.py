"""Names of devices, as `--device` takes them where models run."""

from ..errors import UsageError
from ..ffi import DEVICE_TYPES, Device


def parse_device(name: str) -> Device:
    """The device that a name means, whether or not it is here: "cpu", "cuda", "vulkan:1". Raises UsageError."""
    kind, colon, digits = name.partition(":")
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 3 else 0
    if kind not in DEVICE_TYPES or (colon and str(number) != digits) or (kind == "cpu" and number):
        kinds = ", ".join(("auto", *DEVICE_TYPES))
        raise UsageError(f"device {name!r:.60} is unknown: expected {kinds}, perhaps with a number, as cuda:0")
    return Device(kind, number)


def resolve_device(name: str) -> str:
    """The device that `--device` means: "auto" is the processor. Raises UsageError for one that is not known."""
    return "cpu" if name == "auto" else str(parse_device(name))
