"""The function of a device's library that chooses tokens from logits there, without a model before it."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import tiny_model
from device_kernels import device_target
from tvm import relax
from tvm.relax.frontend import nn

from mlc_llm.compiler.kernels.families import family
from mlc_llm.compiler.kernels.operations import SETTINGS
from mlc_llm.compiler.model.causal_lm import CausalLM
from mlc_llm.compiler.passes.pipeline import pipeline
from mlc_llm.compiler.target import code_generation
from mlc_llm.runtime import ffi
from mlc_llm.runtime.artifact import ChatConfig, LibraryMetadata
from mlc_llm.runtime.device_logits import DeviceSampler
from mlc_llm.runtime.devices.drivers import open_device
from mlc_llm.runtime.ffi import HOST, Device
from mlc_llm.runtime.ffi_tensor import Tensor, copy, empty
from mlc_llm.runtime.tvm_runtime import tensor

_MOST_ROWS = 16


class _Choice(nn.Module):
    def __init__(self, kind: str) -> None:
        target = device_target(kind)
        self.layers = SimpleNamespace(target=target, family=family(target))

    adjust_and_sample = CausalLM.adjust_and_sample


@cache
def device_sampler(kind: str, vocab: int) -> DeviceSampler:
    """For at most 16 rows of `vocab` logits on a device of this machine."""
    target = device_target(kind)
    spec = {
        "logits": nn.spec.Tensor(["batch_size", vocab], "float32"),
        "words": nn.spec.Tensor(["words"], "int32"),
        "settings": nn.spec.Tensor(["batch_size", len(SETTINGS)], "float32"),
        "uniforms": nn.spec.Tensor(["batch_size"], "float32"),
        "tokens": nn.spec.Tensor(["batch_size"], "int32"),
        "$": {"param_mode": "none", "effect_mode": "none"},
    }
    module, _ = _Choice(kind).export_tvm(spec={"adjust_and_sample": spec})
    sizes = {"vocab_size": vocab, "context_window_size": 1, "prefill_chunk_size": 1}
    config = ChatConfig.model_validate({"model_type": "none", "quantization": "q0f32", "model_config": {}, **sizes})
    metadata = LibraryMetadata.model_validate(tiny_model.metadata(config))
    table = family(target).table(target, 16)
    open_device(Device(kind))
    with TemporaryDirectory() as folder, code_generation(target), target.tvm_target():
        lowered = pipeline(metadata, {"batch_size": _MOST_ROWS}, table, None)(module)
        path = str(Path(folder, "sampling.so"))
        relax.build(lowered, target.tvm_target(), relax_pipeline=None).export_library(path)
        machine = ffi.load_module(path)["vm_load_executable"]()
    places = [number for device in (Device(kind), HOST) for number in (device.type_code, device.number, 2)]
    machine["vm_initialization"](*places)
    return DeviceSampler(machine["adjust_and_sample"], Device(kind))


def on_device(array: npt.NDArray[np.float32], kind: str) -> Tensor:
    """A copy of an array on a device."""
    open_device(Device(kind))
    made = empty(array.shape, "float32", Device(kind))
    copy(tensor(np.ascontiguousarray(array)), made)
    return made
