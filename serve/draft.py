"""The small model that guesses for a large one, with `speculative_mode="small_draft"`."""

from pathlib import Path
from typing import NamedTuple

from ..runtime.artifact import ChatConfig, load_chat_config
from ..runtime.draft_model import DraftModel
from ..runtime.errors import ModelFileError
from ..runtime.library import Library
from ..runtime.model import Model
from ..runtime.tokenizer import Tokenizer
from .artifacts import find_folder, open_library
from .config import EngineConfig, Limits


class Draft(NamedTuple):
    """A model that is to guess."""

    name: str
    folder: Path
    config: ChatConfig
    library: Library


def open_draft(config: EngineConfig, device: str, threads: int, tokenizer: Tokenizer) -> Draft:
    """Find the draft model of a config, and check that it has the same tokens.

    Raises UsageError, ModelFileError.
    """
    (draft,) = config.additional_models
    name, model_lib = (draft, None) if isinstance(draft, str) else draft
    folder = find_folder(name)
    chat_config = load_chat_config(folder)
    _check_tokens(name, Tokenizer.load(folder), tokenizer)
    library = open_library(folder, chat_config, device, model_lib)
    library.set_threads(threads)
    return Draft(name, folder, chat_config, library)


def load_draft(draft: Draft, limits: Limits, vocab_size: int, *, keeps: bool) -> DraftModel:
    """Load a draft model with as much room as the large one has. Raises ModelFileError, EngineError."""
    model = Model.load(
        draft.folder,
        draft.library,
        max_num_sequence=min(limits.max_num_sequence, draft.library.metadata.max_batch_size),
        max_total_sequence_length=limits.max_total_sequence_length,
    )
    if model.vocab_size < vocab_size:
        raise ModelFileError(
            f"the draft model {draft.name} chooses among {model.vocab_size} tokens, the model among {vocab_size}: a "
            "draft needs the same vocabulary"
        )
    return DraftModel(model, vocab_size, keeps=keeps)


def _check_tokens(name: str, tokenizer: Tokenizer, other: Tokenizer) -> None:
    """Raise ModelFileError unless tokens mean the same to a draft as to the other model."""
    token = tokenizer.first_difference(other)
    if token is not None:
        here, there = tokenizer.string_of(token), other.string_of(token)
        raise ModelFileError(
            f"token {token} is {here!r:.40} to the draft model {name} and {there!r:.40} to the model: a draft needs "
            "the same vocabulary"
        )
