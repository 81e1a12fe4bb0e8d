"""The library stage: a model folder's config -> a shared library for one target, with its metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from .. import __version__
from ..runtime.artifact import ChatConfig, KVCacheMetadata, LibraryMetadata, ParamMetadata, model_hash
from .kernels.cache_kernels import CacheShape
from .kernels.cpu.sample_token import sampling_kernels
from .kernels.kv_cache import PAGE_SIZE, SHEET_PAGES
from .kernels.table import KernelTable
from .link import find_linker, link
from .model.modules import Layers, assign_weights
from .model.registry import get_architecture
from .optimization import Optimization
from .passes.pipeline import pipeline
from .preflight import explained, reserve, workspace
from .quantization.choice import folder_scheme
from .self_test import self_test_kernels
from .target import CompileTarget, code_generation
from .target.sources import sources_kept

_ROOM = 16 << 20  # bytes: object files and library of the largest models take a part of it


def build_library(
    config: ChatConfig,
    output: Path,
    *,
    target: CompileTarget,
    opt: Optimization | None = None,
    debug_dump: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> LibraryMetadata:
    """Trace, lower and link the model that `config` describes; `output` appears whole or not at all.

    `progress` is called with (steps done, steps in all, what comes next). Raises EngineError without a linker for
    the target's host or when the file cannot be written.
    """
    opt = opt or Optimization()
    linker = find_linker(target.host_triple)
    report = progress or (lambda done, total, what: None)
    with workspace(output) as folder:
        room = folder / "room"
        with explained(output, f"linking takes {_ROOM >> 20} MiB"):
            reserve(room, _ROOM)
        report(0, 4, "tracing the model")
        module, metadata, bounds, table = _trace(config, target, opt)
        report(1, 4, "lowering")
        tvm_target = target.tvm_target()
        with code_generation(target), sources_kept(debug_dump):
            passes = dict(tvm.transform.PassContext.current().config)  # what the target's code generation asks for
            with tvm_target, tvm.transform.PassContext(opt_level=opt.passes, config=passes):
                module = pipeline(metadata, bounds, table, debug_dump, cuda_graph=opt.cuda_graph)(module)
                report(2, 4, "generating machine code")
                executable = relax.build(module, tvm_target, relax_pipeline=None)
            report(3, 4, "linking")
            room.unlink()
            link(executable, linker, folder, output, target.runtime_device)
        report(4, 4, "done")
    return metadata


def _trace(
    config: ChatConfig, target: CompileTarget, opt: Optimization
) -> tuple[tvm.IRModule, LibraryMetadata, dict[str, int], KernelTable]:
    architecture = get_architecture(config.model_type)
    model_config = architecture.from_dict(config.architecture)
    layers = Layers(folder_scheme(config), target, opt.activation_bits)
    model = architecture.build(model_config, layers)
    assign_weights(model)
    module, named_parameters = model.export_tvm(spec=model.specification())
    # what the processor runs, also where a device runs the model: loading, and sampling from logits that it has seen
    on_host, on_device = {**layers.preprocs, **sampling_kernels()}, {}
    if target.gpu is not None:
        on_host = {name: function.with_attr("tirx.is_host_func", True) for name, function in on_host.items()}
        on_device = {**layers.family.others(model.cache.shape, target), **self_test_kernels(target)}
    for name, function in {**on_host, **on_device}.items():
        module[name] = function.with_attr("global_symbol", name)
    metadata = _metadata(config, model_config, model.cache.shape, target, named_parameters)
    bounds = {"seq_len": model_config.prefill_chunk_size, "batch_size": model_config.max_batch_size}
    return module, metadata, bounds, layers.table


def _metadata(config: ChatConfig, model_config: Any, cache: CacheShape, target: CompileTarget,
              named_parameters: list[tuple[str, Any]]) -> LibraryMetadata:  # fmt: skip
    params: list[ParamMetadata] = [
        parameter.attrs["stored"].model_copy(update={"name": name})
        for name, parameter in named_parameters
        if "stored" in parameter.attrs  # not of pieces after the first
    ]
    return LibraryMetadata(
        model_type=config.model_type,
        quantization=config.quantization,
        context_window_size=model_config.context_window_size,
        # the cache keeps every token and sliding layers mask by position: nothing for a runtime to do
        sliding_window_size=-1,
        prefill_chunk_size=model_config.prefill_chunk_size,
        max_batch_size=model_config.max_batch_size,
        vocab_size=config.vocab_size,
        active_vocab_size=config.active_vocab_size or config.vocab_size,
        kv_cache=KVCacheMetadata(
            num_hidden_layers=cache.num_hidden_layers,
            num_attention_heads=cache.num_attention_heads,
            num_key_value_heads=cache.num_key_value_heads,
            head_dim=cache.head_dim,
            dtype=cache.dtype,
            page_size=PAGE_SIZE,
            sheet_pages=SHEET_PAGES,
        ),
        params=params,
        interface="5",
        package_version=__version__,
        tvm_version=tvm.__version__,
        device=target.runtime_device,
        target=target.attributes,
        cpu_features=list(target.cpu_features),
        host_triple=target.host_triple,
        model_hash=model_hash(config),
    )
