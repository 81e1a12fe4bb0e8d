"""The Hugging Face hub: addresses as `HF://org/name[@revision]`, what a repository holds, and its files.

HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub, which is imported on first use only.
"""

import glob
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .artifact import HUB_PREFIX, is_address
from .errors import EngineError, UsageError
from .policy import download_policy

_ADDRESS = re.compile(
    r"(?P<repository>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(@(?P<revision>[\w][\w./-]{0,199}))?", re.ASCII
)
_TIMEOUT = 30  # seconds for an answer about a repository


class Progress(Protocol):
    """Called during downloads, from any thread: bytes done, bytes in all (0: unknown), what is being fetched."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


@dataclass(frozen=True)
class Address:
    """A repository of models, `repository` as org/name; `revision` is a branch, a tag or a commit."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    files: frozenset[str]


def parse_address(model: str) -> Address:
    """The parts of `HF://org/name[@revision]`. Raises UsageError."""
    match = _ADDRESS.fullmatch(model[len(HUB_PREFIX) :])
    if not is_address(model) or match is None or ".." in model or "--" in match["repository"]:
        raise UsageError(
            f"{model!r:.200} is not a Hugging Face repository: expected HF://org/name or HF://org/name@revision"
        )
    return Address(match["repository"], match["revision"])


def list_files(address: Address) -> Listing:
    """Ask the hub what a repository holds. Raises UsageError, EngineError."""
    from huggingface_hub import HfApi

    with _explained(address, "is not in the cache and the hub cannot be reached"):
        info = HfApi().model_info(address.repository, revision=address.revision, timeout=_TIMEOUT)
        return Listing(str(info.sha), frozenset(file.rfilename for file in info.siblings or []))


def is_in_hub_cache(address: Address, name: str) -> bool:
    """Whether a file of a repository is in the hub's own cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(address.repository, name, cache_dir=_hub_cache(), revision=address.revision)
    return isinstance(path, str)


def download_files(
    address: Address,
    commit: str,
    names: Iterable[str],
    folder: Path,
    *,
    nbytes: int = 0,
    progress: Progress | None = None,
) -> None:
    """Put files of a commit into a folder; what an earlier call left there, whole or in part, is not fetched again.

    `nbytes` is what they have together, as far as it is known. Raises UsageError, EngineError.
    """
    from huggingface_hub import snapshot_download

    names = sorted(names)
    with _explained(address):
        snapshot_download(
            address.repository,
            revision=commit,
            local_dir=folder,
            allow_patterns=[glob.escape(name) for name in names],
            tqdm_class=_progress_bar(progress, str(address), nbytes),
        )
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise EngineError(f"{address} could not be downloaded: {absent[0]} did not arrive: try again")


def download_snapshot(
    address: Address, patterns: Sequence[str], ignored: Sequence[str] = (), progress: Progress | None = None
) -> Path:
    """The folder of the files that match, in the hub's own cache, which other tools share.

    That is HF_HOME or HF_HUB_CACHE, or `$MLC_LLM_HOME/hub` where MLC_LLM_HOME is set. A complete cached copy serves
    when there is no network. Raises UsageError, EngineError.
    """
    policy = download_policy()
    if policy == "OFF":
        raise forbidden(address)
    from huggingface_hub import errors, snapshot_download

    with _explained(address):
        try:
            return Path(
                snapshot_download(
                    address.repository,
                    revision=address.revision,
                    cache_dir=_hub_cache(),
                    allow_patterns=list(patterns),
                    ignore_patterns=list(ignored),
                    tqdm_class=_progress_bar(progress, str(address)),
                    force_download=policy == "REDO",
                    local_files_only=policy == "READONLY",
                )
            )
        except errors.LocalEntryNotFoundError:
            if policy == "READONLY":
                raise forbidden(address) from None
            raise


def forbidden(what: object) -> UsageError:
    """The error for a download that MLC_DOWNLOAD_CACHE_POLICY does not allow."""
    policy = download_policy()
    absent = " and it is not (fully) in the cache" if policy == "READONLY" else ""
    return UsageError(f"{what} cannot be used: MLC_DOWNLOAD_CACHE_POLICY is {policy}{absent}: set it to ON")


def _hub_cache() -> Path | None:
    home = os.environ.get("MLC_LLM_HOME")
    return Path(home).expanduser() / "hub" if home else None


@contextmanager
def _explained(address: Address, otherwise: str = "could not be downloaded") -> Iterator[None]:
    """Errors of huggingface_hub become ours, in one line."""
    from huggingface_hub import errors

    try:
        yield
    except (UsageError, EngineError):
        raise
    except errors.GatedRepoError:
        raise UsageError(
            f"{address} is gated: accept its terms on its page, then set HF_TOKEN to a token of that account"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UsageError(f"{address} does not exist, or is private: check the name, or set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"{address}: the repository has no revision {address.revision}") from None
    except errors.LocalEntryNotFoundError as error:
        raise EngineError(
            f"{address} is not (fully) in the cache and the hub cannot be reached: {_reason(error)}"
        ) from None
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise EngineError(f"{address} {otherwise}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """The root cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line for line in str(error).splitlines() if line.strip()), "no details")
    return f"{type(error).__name__}: {first:.200}"


def _progress_bar(progress: Progress | None, label: str, nbytes: int = 0) -> Any:
    """A tqdm class that draws nothing and passes the byte counts on; `nbytes` is the total from the start."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    lock = threading.Lock()
    seen = {"done": 0, "total": nbytes}

    class Bar(tqdm):  # type: ignore[misc]
        def display(self, *args: Any, **kwargs: Any) -> None:
            return None

        def refresh(self, *args: Any, **kwargs: Any) -> None:
            self._report()

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            self._report()
            return None

        def close(self) -> None:
            return None

        def _report(self) -> None:
            # Bars count files too ("it"), and bytes both received and written: the furthest of those is shown. Their
            # totals grow with every file that begins.
            if progress is None or self.unit != "B":
                return
            with lock:
                seen["done"] = max(seen["done"], int(self.n))
                seen["total"] = max(seen["total"], int(self.total or 0))
                progress(min(seen["done"], seen["total"]), seen["total"], label)

    return Bar
