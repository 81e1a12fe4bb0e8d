"""Which scheme a model gets: the one that was asked for, the source's own blocks, or the default."""

from collections.abc import Sequence

from ...runtime.artifact import ChatConfig
from ...runtime.errors import UsageError
from ..model.architecture import Weight
from ..source.source import BlockSource, Source
from .kept import KEPT_NAMES, BlockScheme, kept_scheme
from .scheme import SCHEMES, Scheme, get_scheme

AnyScheme = Scheme | BlockScheme
DEFAULT_QUANTIZATION = "q4f16_1"


def check_quantization(name: str) -> None:
    """Raises UsageError for a name that means nothing for any model."""
    if name not in KEPT_NAMES:
        get_scheme(name)


def choose_scheme(name: str | None, source: Source, weights: Sequence[Weight]) -> AnyScheme:
    """The scheme for the weights of a source. None keeps what is in blocks already, and is q4f16_1 for all others.

    Raises UsageError for the name of blocks that the source does not have.
    """
    kept = source.file_type if isinstance(source, BlockSource) else ""
    if name is None:
        name = kept or DEFAULT_QUANTIZATION
    if name not in KEPT_NAMES:
        return get_scheme(name)
    if name != kept or not isinstance(source, BlockSource):
        there = f"those of {source.name} are {kept}: leave -q out to keep them, or"
        seen = there if kept else f"{source.name} has none:"
        raise UsageError(f"-q {name} keeps the blocks of a GGUF file, and {seen} name one of {', '.join(SCHEMES)}")
    return kept_scheme(source, weights)


def folder_scheme(config: ChatConfig) -> AnyScheme:
    """The scheme of a compiled folder. Raises UsageError for one that this version does not know."""
    if config.weight_formats is not None:
        return BlockScheme(config.quantization, config.weight_formats)
    return get_scheme(config.quantization)
