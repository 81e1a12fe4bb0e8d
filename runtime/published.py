"""Compiled models that are published on the Hugging Face hub, as MLC's `HF://mlc-ai/<model>-<quantization>-MLC`.

They are kept where MLC-LLM keeps them, so that what it has downloaded is found here, and the other way round:

    $MLC_LLM_HOME/model_weights/hf/<org>/<name>          complete (a revision: <name>@<revision>)
    $MLC_LLM_HOME/model_weights/hf/<org>/.download/      begun; goes on where it was interrupted
    $MLC_LLM_READONLY_WEIGHT_CACHE/hf/<org>/<name>       looked at first; several folders, as in PATH
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from .artifact import (
    CHAT_CONFIG_NAME,
    TENSOR_CACHE_NAME,
    TENSOR_CACHE_OLD_NAME,
    TOKENIZER_FILES,
    cache_home,
    load_chat_config,
    load_tensor_cache,
)
from .errors import EngineError, ModelFileError
from .hub import Address, Listing, Progress, download_files, forbidden, is_in_hub_cache, list_files, parse_address
from .locks import locked
from .policy import download_policy

_SOURCE_CONFIG = "config.json"  # what a repository of source weights has


def find_published(model: str) -> Path | None:
    """The folder of a compiled model that was downloaded before; asks nobody. Raises UsageError.

    Under MLC_DOWNLOAD_CACHE_POLICY=REDO only a read-only cache has one.
    """
    address, policy = parse_address(model), download_policy()
    if policy == "OFF":
        raise forbidden(address)
    own = [] if policy == "REDO" else [_own_place(address)]
    return next((folder for folder in (*_read_only_places(address), *own) if _is_complete(folder)), None)


def published_place(model: str) -> Path:
    """Where the folder of a compiled model is, or goes. Raises UsageError."""
    return find_published(model) or _own_place(parse_address(model))


def fetch_published(model: str, progress: Progress | None = None, *, weights: bool = True) -> Path | None:
    """The folder of a compiled model, downloaded unless it was before; None where the repository holds source weights.

    Without `weights` it may be a folder that has the configuration and the weight index only. Sizes and sums of the
    weights are checked by whoever loads them. Raises UsageError, ModelFileError, EngineError.
    """
    folder = find_published(model)
    if folder is not None:
        return folder
    address = parse_address(model)
    if download_policy() == "READONLY":
        if is_in_hub_cache(address, _SOURCE_CONFIG):
            return None
        raise forbidden(address)
    try:
        listing = list_files(address)
    except EngineError:
        if is_in_hub_cache(address, _SOURCE_CONFIG):
            return None
        raise
    if CHAT_CONFIG_NAME not in listing.files:
        return None
    folder = _own_place(address)
    staging = folder.parent / ".download" / folder.name
    with _alone(staging):
        if (done := find_published(model)) is not None:  # by the process that was waited for
            return done
        if download_policy() == "REDO" and weights:
            shutil.rmtree(staging, ignore_errors=True)
        _fetch_description(address, listing, staging)
        if not weights:
            return staging
        _fetch_rest(address, listing, staging, progress)
        shutil.rmtree(staging / ".cache", ignore_errors=True)  # huggingface_hub's notes
        if folder.exists():
            shutil.rmtree(folder)
        staging.replace(folder)
    return folder


def _read_only_places(address: Address) -> list[Path]:
    bases = os.environ.get("MLC_LLM_READONLY_WEIGHT_CACHE", "").split(os.pathsep)
    return [_place(Path(base).expanduser(), address) for base in bases if base]


def _own_place(address: Address) -> Path:
    return _place(cache_home() / "model_weights", address)


def _place(base: Path, address: Address) -> Path:
    revision = f"@{quote(address.revision, safe='')}" if address.revision else ""
    return base / "hf" / f"{address.repository}{revision}"


def _is_complete(folder: Path) -> bool:
    """Folders appear under their names when all is there."""
    return (folder / CHAT_CONFIG_NAME).is_file()


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """One download of a model at a time, among all processes. Raises EngineError where the disk refuses."""
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with locked(staging.with_name(f"{staging.name}.lock"), staging, _say):
            yield
    except OSError as error:
        raise EngineError(
            f"{error.filename or staging} cannot be written: {error.strerror or error} "
            "(MLC_LLM_HOME names another place)"
        ) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fetch_description(address: Address, listing: Listing, staging: Path) -> None:
    """The configuration and the weight index."""
    index = next((name for name in (TENSOR_CACHE_NAME, TENSOR_CACHE_OLD_NAME) if name in listing.files), None)
    if index is None:
        raise ModelFileError(
            f"{address} holds {CHAT_CONFIG_NAME} but no {TENSOR_CACHE_NAME} (nor {TENSOR_CACHE_OLD_NAME}): "
            "it is not a whole model folder"
        )
    download_files(address, listing.commit, [CHAT_CONFIG_NAME, index], staging)


def _fetch_rest(address: Address, listing: Listing, staging: Path, progress: Progress | None) -> None:
    """The shards that the index names, and the tokenizer."""
    index, cache = load_tensor_cache(staging)
    shards = [shard.dataPath for shard in cache.records]
    for name in shards:
        if name not in listing.files or not _is_plain(name):
            raise ModelFileError(f"{address} has no file {name!r:.200}, which {index.name} names as a weight shard")
    named = (name for name in load_chat_config(staging).tokenizer_files if _is_plain(name))
    tokenizer = listing.files.intersection((*TOKENIZER_FILES, *named))
    nbytes = sum(shard.nbytes for shard in cache.records)
    download_files(address, listing.commit, {*shards, *tokenizer}, staging, nbytes=nbytes, progress=progress)


def _is_plain(name: str) -> bool:
    """Whether a name means a file inside the folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
