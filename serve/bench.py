"""How fast a compiled model runs on this machine: `mlc bench`.

Decoding reads every weight, and every key and value, for each token; the machine's reading rate, measured beside it in
the same rounds, says how much of what is possible is reached.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

from .. import __version__
from ..runtime.artifact import LibraryMetadata, ParamMetadata, load_chat_config
from ..runtime.bandwidth import ReadProbe
from ..runtime.devices.drivers import available_memory
from ..runtime.errors import EngineError, UsageError
from ..runtime.library import Library
from ..runtime.model import Model
from ..runtime.processor import num_threads, processor_name
from ..runtime.tvm_runtime import numpy_dtype, tvm_version
from .artifacts import choose_device, open_library
from .config import EngineConfig, choose_limits
from .measure import DecodeResult, Measured, PrefillResult, measure_decode, measure_prefill

_STATUS = Path("/proc/self/status")

Stage = Callable[[str], None]  # is told what is measured next


@dataclass(frozen=True)
class Workload:
    """What is measured: each prompt length, and each batch size at each depth.

    `depths` are the tokens that every sequence holds when decoding begins, `generate` those that each decodes then.
    """

    prompt_lengths: tuple[int, ...] = (512,)
    generate: int = 128
    batch_sizes: tuple[int, ...] = (1,)
    depths: tuple[int, ...] = (32,)
    rounds: int = 5

    def cache_tokens(self, page_size: int) -> int:
        """Tokens of whole pages that the KV cache needs for the largest of all."""
        needs = [(1, length) for length in self.prompt_lengths]
        needs += [(batch, depth + self.generate) for batch in self.batch_sizes for depth in self.depths]
        return max(sequences * -(-tokens // page_size) * page_size for sequences, tokens in needs)


@dataclass(frozen=True)
class Memory:
    """Bytes. `peak` is the most that the process had resident, without the buffer of the bandwidth probe."""

    peak: int
    weights: int
    kv_cache: int
    kv_cache_tokens: int
    with_compiler: bool  # the library was compiled just now, by this process

    @property
    def rest(self) -> int:
        """Interpreter, libraries, activations."""
        return self.peak - self.weights - self.kv_cache


@dataclass(frozen=True)
class BenchReport:
    """Everything that `mlc bench` measures; times in seconds."""

    model: str
    library: str
    quantization: str
    device: str
    processor: str
    threads: int
    rounds: int
    load_seconds: float
    read_bandwidth: Measured  # bytes per second
    memory: Memory
    prefill: tuple[PrefillResult, ...]
    decode: tuple[DecodeResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, (str, int, float))}
        return {
            **plain,
            "versions": {"mlc-aot": __version__, "tvm": tvm_version(), "python": sys.version.split()[0]},
            "read_bandwidth": self.read_bandwidth.to_dict(),
            "memory": {**asdict(self.memory), "rest": self.memory.rest},
            "prefill": [result.to_dict() for result in self.prefill],
            "decode": [result.to_dict() for result in self.decode],
        }


def bench(
    folder: Path, device: str, model_lib: str | None, work: Workload, stage: Stage, threads: int | None = None
) -> BenchReport:
    """Load the model in `folder` and measure it on so many `threads`, None for the default.

    Raises UsageError, ModelFileError, EngineError.
    """
    config = load_chat_config(folder)
    device = choose_device(device, folder, config, model_lib)
    threads = num_threads(threads)
    probe = ReadProbe(threads)  # before all else, so that it is a part of every later peak
    stage("load")
    begin = perf_counter()
    library = open_library(folder, config, device, model_lib)
    with_compiler = "tvm" in sys.modules
    if with_compiler:  # which is no part of loading
        begin = perf_counter()
        library = open_library(folder, config, device, model_lib)
    library.set_threads(threads)
    check_workload(work, library.metadata)
    model = _load(folder, library, work)
    load_seconds = perf_counter() - begin
    prefill, decode, rates = _measure(model, work, probe, stage)
    return BenchReport(
        model=folder.resolve().name,
        library=os.fspath(library.path),
        quantization=config.quantization,
        device=device,
        processor=processor_name(),
        threads=threads,
        rounds=work.rounds,
        load_seconds=load_seconds,
        read_bandwidth=Measured(tuple(rates)),
        memory=_memory(library.metadata, work, probe, with_compiler),
        prefill=tuple(prefill),
        decode=tuple(decode),
    )


def _load(folder: Path, library: Library, work: Workload) -> Model:
    """The model with a KV cache of the size that the work needs."""
    tokens = work.cache_tokens(library.metadata.kv_cache.page_size)
    wanted = EngineConfig(max_num_sequence=max(work.batch_sizes), max_total_sequence_length=tokens)
    limits = choose_limits("local", wanted, library.metadata, available_memory(library.device))
    return Model.load(
        folder,
        library,
        max_num_sequence=limits.max_num_sequence,
        max_total_sequence_length=limits.max_total_sequence_length,
    )


def _measure(
    model: Model, work: Workload, probe: ReadProbe, stage: Stage
) -> tuple[list[PrefillResult], list[DecodeResult], list[float]]:
    """All the rounds, and the rates at which the machine read before those of decoding."""
    prefill, decode, rates = [], [], []

    def read_rate() -> float:
        rates.append(probe.measure())
        return rates[-1]

    for length in work.prompt_lengths:
        stage(f"prefill, {length} tokens")
        prefill.append(measure_prefill(model, length, work.rounds))
    for depth in work.depths:
        for batch in work.batch_sizes:
            stage(f"decode, batch {batch} at depth {depth}")
            nbytes = step_bytes(model.metadata, batch, depth, work.generate)
            decode.append(
                measure_decode(
                    model,
                    batch_size=batch,
                    depth=depth,
                    generate=work.generate,
                    rounds=work.rounds,
                    step_bytes=nbytes,
                    read_rate=read_rate,
                )
            )
    return prefill, decode, rates


def _memory(metadata: LibraryMetadata, work: Workload, probe: ReadProbe, with_compiler: bool) -> Memory:
    tokens = work.cache_tokens(metadata.kv_cache.page_size)
    return Memory(
        peak=peak_resident_bytes() - probe.nbytes,
        weights=_nbytes(metadata.params),
        kv_cache=tokens * metadata.kv_cache.bytes_per_token,
        kv_cache_tokens=tokens,
        with_compiler=with_compiler,
    )


def check_workload(work: Workload, metadata: LibraryMetadata) -> None:
    """Raise UsageError for what the library cannot do."""
    context, most = metadata.context_window_size, metadata.max_batch_size
    if context > 0 and max(work.prompt_lengths) > context:
        raise UsageError(f"--prompt-length {max(work.prompt_lengths)}: the library's context holds {context} tokens")
    if context > 0 and max(work.depths) + work.generate > context:
        raise UsageError(
            f"--depth {max(work.depths)} and --generate {work.generate} make {max(work.depths) + work.generate} "
            f"tokens: the library's context holds {context}"
        )
    if max(work.batch_sizes) > most:
        raise UsageError(f"--batch-size {max(work.batch_sizes)}: the library takes at most {most} sequences")


def step_bytes(metadata: LibraryMetadata, batch_size: int, depth: int, generate: int) -> int:
    """Bytes that a decode step reads on average: the weights once, and the keys and values of every sequence.

    Of a token embedding that is not the head too, only a row is read for each token.
    """
    params = metadata.params
    if any(param.name.startswith("lm_head.") for param in params):
        params = [param for param in params if "embed_tokens." not in param.name]
    held = depth + (generate + 1) / 2
    return _nbytes(params) + round(batch_size * held * metadata.kv_cache.bytes_per_token)


def _nbytes(params: list[ParamMetadata]) -> int:
    """Bytes of parameters in memory, in the layout that the kernels read."""
    forms = [(p.preprocs[-1].out_shape, p.preprocs[-1].out_dtype) if p.preprocs else (p.shape, p.dtype) for p in params]
    return sum(prod(shape) * numpy_dtype(dtype).itemsize for shape, dtype in forms)


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident. Raises EngineError where the kernel does not tell.

    Not `getrusage`, whose figure begins with that of the process that started this one.
    """
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError) as error:
        raise EngineError(f"{_STATUS} does not tell the memory of this process: {error}") from None
