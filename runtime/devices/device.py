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
    """The device that `--device` means, in full: "auto" is the best that can be used here.

    Raises UsageError for one that is not known or not there, and says which there are.
    """
    from . import detect

    if name == "auto":
        return detect.best()
    device = parse_device(name)
    if device.is_host:
        return str(device)
    try:
        found = detect.found(device.kind)
    except detect.DriverProblem as problem:
        raise UsageError(f"device {device} is not there: {problem}") from None
    if device.number >= len(found):
        here = ", ".join(f"{device.kind}:{one.index} ({one.name})" for one in found)
        raise UsageError(f"device {device} is not there: this machine has {here}")
    return str(device)
