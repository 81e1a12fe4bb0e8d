"""`mlc compile --dry-run`: what a compilation would make and what running it would take. Writes nothing."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.artifact import KVCacheMetadata
from .inputs import compiled_config, open_model
from .layout import compiled_folder, folder_layout, source_layout
from .model.architecture import ModelConfig
from .model.registry import get_architecture
from .options import CompileOptions, check_options
from .progress import SILENT, Progress
from .quantization.choice import choose_scheme, folder_scheme
from .weights import plan_weights


@dataclass(frozen=True)
class CompilePlan:
    """The numbers of `mlc compile --dry-run`.

    weight_bytes: in memory; file_bytes: in the model folder. memory_bytes: for one conversation of full context.
    """

    folder: Path
    library: Path
    model_type: str
    quantization: str
    device: str
    parameters: int
    weight_bytes: int
    file_bytes: int
    bits_per_weight: float
    context_window_size: int
    prefill_chunk_size: int
    kv_bytes_per_token: int
    kv_cache_bytes: int
    activation_bytes: int
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values, paths as text."""
        return {**asdict(self), "folder": str(self.folder), "library": str(self.library)}


def plan(options: CompileOptions, progress: Progress = SILENT) -> CompilePlan:
    """Work the numbers out from shapes alone.

    Source weights that are named by address are downloaded first; of a compiled model only the configuration is.
    Raises UsageError, ModelFileError, EngineError.
    """
    checked = check_options(options)
    folder = compiled_folder(options.model, weights=False)
    if folder is not None:
        chat_config = compiled_config(folder, checked)
        architecture = get_architecture(chat_config.model_type)
        config: ModelConfig = architecture.from_dict(chat_config.architecture)
        scheme = folder_scheme(chat_config)
        layout = folder_layout(folder, chat_config, checked)
        model_type = chat_config.model_type
    else:
        model = open_model(options.model, checked.model_type, checked.overrides, progress)
        scheme = choose_scheme(checked.quantization, model.source, model.weights)
        architecture, config, model_type = model.architecture, model.config, model.model_type
        layout = source_layout(model.source.name, scheme.name, checked)
    summary = plan_weights(architecture.weights(config), scheme)
    kv_cache = KVCacheMetadata(
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        dtype=checked.target.kv_dtype(scheme.model_dtype, config.kv_cache_dtype),
    )
    kv_cache_bytes = kv_cache.bytes_per_token * config.context_window_size
    activations = activation_bytes(config)
    return CompilePlan(
        folder=layout.folder,
        library=layout.library,
        model_type=model_type,
        quantization=scheme.name,
        device=checked.target.device,
        parameters=summary.parameters,
        weight_bytes=summary.bytes,
        file_bytes=summary.file_bytes,
        bits_per_weight=summary.bits_per_parameter,
        context_window_size=config.context_window_size,
        prefill_chunk_size=config.prefill_chunk_size,
        kv_bytes_per_token=kv_cache.bytes_per_token,
        kv_cache_bytes=kv_cache_bytes,
        activation_bytes=activations,
        memory_bytes=summary.bytes + kv_cache_bytes + activations,
    )


def activation_bytes(config: ModelConfig) -> int:
    """An estimate of what one prefill chunk holds at once, in float32, and one row of logits.

    Of a layer: its input, the residual and the output, queries, keys and values, and gate, up and their product.
    """
    fields = config.to_dict()
    hidden: int = fields.get("hidden_size", config.num_attention_heads * config.head_dim)
    intermediate: int = fields.get("intermediate_size", 4 * hidden)
    attention = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    widest = 3 * hidden + attention + 3 * intermediate
    return 4 * (config.prefill_chunk_size * widest + config.vocab_size)
