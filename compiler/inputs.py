"""What a compilation starts from: an opened source with its architecture, or the config of a compiled folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.artifact import CHAT_CONFIG_NAME, ChatConfig, load_chat_config
from ..runtime.errors import ModelFileError, UsageError
from .model.architecture import Architecture, ModelConfig, Weight
from .model.registry import check_supported, get_architecture
from .options import CheckedOptions
from .overrides import Overrides, check_applied
from .progress import Progress, downloads
from .quantization.choice import folder_scheme
from .source import Source, open_source


@dataclass(frozen=True)
class OpenModel:
    """A source with the architecture that its config names, and that config with the overrides in it."""

    source: Source
    model_type: str
    architecture: Architecture
    config: ModelConfig

    @property
    def weights(self) -> list[Weight]:
        return self.architecture.weights(self.config)


def open_model(model: str, model_type: str, overrides: Overrides, progress: Progress) -> OpenModel:
    """Open MODEL, downloading it where it is a name. Raises ModelFileError, UsageError."""
    if model_type != "auto":
        check_supported(model_type)
    source = open_source(model, progress=downloads(progress))
    with _about(f"{source.name}'s configuration"):
        named = source.config.get("model_type") if model_type == "auto" else model_type
        if not isinstance(named, str):
            raise ModelFileError(f"model_type = {named!r:.80}: name it with --model-type")
        quantized = source.config.get("quantization_config")
        if quantized:
            method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
            raise ModelFileError(f"its weights are quantized already (quant_method = {method!r:.80}): "
                                 "compile the original weights")  # fmt: skip
        architecture = get_architecture(named)
        return OpenModel(source, named, architecture, read_config(architecture, source.config, overrides))


def read_config(architecture: Architecture, published: Mapping[str, Any], overrides: Overrides) -> ModelConfig:
    """The architecture's config with the overrides in it. Raises UsageError for one that the model cannot take."""
    config: ModelConfig = architecture.from_dict({**published, **overrides})
    check_applied(overrides, config.to_dict())
    return config


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Errors of the block say what they are about."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"{what}: {error}") from None


def folder_config(folder: Path, overrides: Overrides) -> ChatConfig:
    """The configuration of a compiled folder, with overrides in it. Raises ModelFileError, UsageError."""
    config = load_chat_config(folder)
    with _about(str(folder / CHAT_CONFIG_NAME)):
        known = get_architecture(config.model_type)
        architecture = read_config(known, config.architecture, overrides)
        if config.weight_formats is not None:
            for weight in known.weights(architecture):
                folder_scheme(config).stored(weight)
    if not overrides:
        return config
    sizes = ("context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size")
    changed = {name: getattr(architecture, name) for name in sizes}
    return config.model_copy(update={"architecture": architecture.to_dict(), **changed})


def compiled_config(folder: Path, options: CheckedOptions) -> ChatConfig:
    """`folder_config` for the options of `mlc compile`. Raises UsageError for those that only a source can honour."""
    config = folder_config(folder, options.overrides)
    if options.quantization not in (None, config.quantization):
        raise UsageError(f"{folder} is quantized as {config.quantization}, not {options.quantization}: "
                         "compile the source weights again for another quantization")  # fmt: skip
    if options.model_type not in ("auto", config.model_type):
        raise UsageError(f"{folder} is a {config.model_type} model: leave --model-type {options.model_type} out")
    if options.conv_template is not None:
        raise UsageError(f"{folder} is compiled already and keeps its conversation template: compile the source "
                         f"weights again with --conv-template {options.conv_template}")  # fmt: skip
    return config
