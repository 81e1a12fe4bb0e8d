"""`HF://org/name[@revision]` as a source: the weights, configuration and tokenizer of a Hugging Face repository."""

from ...runtime.artifact import CHAT_CONFIG_NAME, TOKENIZER_FILES
from ...runtime.errors import ModelFileError
from ...runtime.hub import Progress, download_snapshot, parse_address
from .huggingface import CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, HuggingFaceSource

# The top folder's weights only: repositories also hold other formats and copies in sub-folders.
_PATTERNS = (CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, CHAT_CONFIG_NAME, *TOKENIZER_FILES, "*.safetensors")
_IGNORED = ("*/*", "consolidated*.safetensors")


def open_hub(model: str, *, progress: Progress | None = None) -> HuggingFaceSource:
    """Download `HF://org/name[@revision]` and open it. Raises UsageError, EngineError, ModelFileError."""
    address = parse_address(model)
    folder = download_snapshot(address, _PATTERNS, _IGNORED, progress)
    if (folder / CHAT_CONFIG_NAME).exists() and not (folder / CONFIG_NAME).exists():
        raise ModelFileError(
            f"{address} is a compiled model ({CHAT_CONFIG_NAME}), not source weights: `mlc compile {address}` builds "
            "its library"
        )
    return HuggingFaceSource(folder, name=address.repository.split("/")[1])
