"""Names of devices."""

import re

import pytest

from mlc_llm.runtime.devices.device import parse_device, resolve_device
from mlc_llm.runtime.errors import UsageError
from mlc_llm.runtime.ffi import Device


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_processor_is_a_device(name: str) -> None:
    assert resolve_device(name) == "cpu"


@pytest.mark.parametrize(
    ("name", "device"),
    [("cuda", Device("cuda", 0)), ("cuda:0", Device("cuda", 0)), ("vulkan:12", Device("vulkan", 12))],
)
def test_a_device_is_a_kind_and_a_number(name: str, device: Device) -> None:
    assert parse_device(name) == device
    assert parse_device(str(device)) == device


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "cuda:9999", "cpu:1"])
def test_what_is_no_device_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"device '{name}' is unknown: expected auto, cpu, cuda, ")):
        parse_device(name)
