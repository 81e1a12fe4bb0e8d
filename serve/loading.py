"""Everything that answers chat completions with one model, put together."""

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from ..runtime.artifact import ChatConfig, load_chat_config
from ..runtime.derived import start_reading
from ..runtime.devices.drivers import available_memory, largest_buffer
from ..runtime.errors import ModelFileError
from ..runtime.generation import Generator
from ..runtime.model import LanguageModel, Model
from ..runtime.processor import num_threads, return_free_memory
from ..runtime.tokenizer import Tokenizer
from ..templates import ConversationError, Template, load_template
from .artifacts import choose_device, find_folder, find_library, open_library
from .config import EngineConfig, Mode, check_modes, choose_limits

if TYPE_CHECKING:
    from .forms import AnswerForms


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to chat. `names` are those under which a request may ask for it."""

    name: str
    names: frozenset[str]
    folder: Path
    config: ChatConfig
    tokenizer: Tokenizer
    template: Template
    generator: Generator
    stop_strings: tuple[str, ...]
    end_ids: frozenset[int]
    device: str = "cpu"

    @cached_property
    def forms(self) -> "AnswerForms":
        """What answers may consist of besides text."""
        from .forms import AnswerForms

        model_type, size = self.config.model_type, self.generator.vocab_size
        return AnswerForms(self.tokenizer, self.template, model_type, size, self.end_ids)


def load_model(model: str, device: str, model_lib: str | None, mode: Mode, config: EngineConfig) -> LoadedModel:
    """Find, check and load a model. Raises UsageError, ModelFileError, EngineError."""
    check_modes(config)
    threads = num_threads(config.num_threads)
    folder = find_folder(model)
    chat_config = load_chat_config(folder)
    device = choose_device(device, folder, chat_config, model_lib)
    # Packed weights are read while the tokenizer is parsed.
    found = find_library(folder, chat_config, device, model_lib)
    reading = None if found is None else start_reading(folder, found)
    tokenizer, template = load_text(folder, chat_config)
    Thread(target=return_free_memory, daemon=True).start()
    library = open_library(folder, chat_config, device, model_lib)
    library.set_threads(threads)
    draft = None
    if config.speculative_mode == "small_draft":
        from .draft import load_draft, open_draft

        draft = open_draft(config, device, threads, tokenizer)
    drafting = None if draft is None else draft.library.metadata
    memory, largest = available_memory(library.device), largest_buffer(library.device)
    limits = choose_limits(mode, config, library.metadata, memory, drafting, largest)
    if limits.note is not None:
        print(limits.note, file=sys.stderr, flush=True)
    loaded = Model.load(
        folder,
        library,
        max_num_sequence=limits.max_num_sequence,
        max_total_sequence_length=limits.max_total_sequence_length,
        prefill_chunk_size=limits.prefill_chunk_size,
        reading=reading,
    )
    assembled = assemble(model, folder, chat_config, tokenizer, template, loaded, str(library.device))
    scheduler = assembled.generator.scheduler
    keeps = scheduler.kv_cache.keeps = config.prefix_cache_mode == "radix"
    speculation = scheduler.speculation
    speculation.length = config.spec_draft_length
    if draft is not None:
        speculation.guesser = load_draft(draft, limits, assembled.generator.vocab_size, keeps=keeps)
    elif config.speculative_mode == "disable":
        speculation.guesser = None
    return assembled


def load_text(folder: Path, config: ChatConfig) -> tuple[Tokenizer, Template]:
    """The tokenizer and the conversation template of a model folder. Raises ModelFileError."""
    tokenizer = Tokenizer.load(folder)
    try:
        template = load_template(folder, conv_template=config.conv_template, prompt_format=config.prompt_format)
    except ConversationError as error:
        advice = "compile the model again with --conv-template NAME"
        line = str(error).removesuffix(".")
        raise ModelFileError(line if line.endswith(advice) else f"{line}: {advice}") from None
    return tokenizer, template


def assemble(
    name: str, folder: Path, config: ChatConfig, tokenizer: Tokenizer, template: Template, model: LanguageModel,
    device: str = "cpu",
) -> LoadedModel:  # fmt: skip
    """Join the parts: an answer ends at the end-of-sequence tokens of the config and where the template says."""
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    # The text of a special token is never part of an answer, so such a stop string has to be met as the token.
    as_tokens = {text: tokenizer.id_of(text) for text in template.stop_strings}
    special = {text: token for text, token in as_tokens.items() if token in tokenizer.special_ids}
    stops = {*eos, *template.stop_token_ids, *(token for token in special.values() if token is not None)}
    return LoadedModel(
        name=name,
        names=frozenset({name, os.path.normpath(name), os.fspath(folder), folder.resolve().name}),
        folder=folder,
        config=config,
        tokenizer=tokenizer,
        template=template,
        generator=Generator(model, tokenizer, stops),
        end_ids=frozenset(stops),
        stop_strings=tuple(text for text in template.stop_strings if text not in special),
        device=device,
    )
