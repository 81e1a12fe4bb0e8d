"""The devices that kernels are tried on."""

from device_kernels import device_kind  # noqa: F401
