"""`HF://org/name[@revision]`: a Hugging Face repository, downloaded through huggingface_hub.

Files live in the hub's own cache (HF_HOME, HF_HUB_CACHE), shared with other tools, or in `$MLC_LLM_HOME/hub` where
MLC_LLM_HOME is set. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean there; downloads resume, and a
complete cached copy serves when there is no network.
"""

import os
import re
import threading
from pathlib import Path
from typing import Any

from ...runtime.errors import EngineError, UsageError
from .huggingface import CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, TOKENIZER_FILES, HuggingFaceSource
from .source import Progress

PREFIX = "hf://"
# The top folder's weights only: repositories also hold other formats and copies in sub-folders.
_PATTERNS = [CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, *TOKENIZER_FILES, "*.safetensors"]
_IGNORED = ["*/*", "consolidated*.safetensors"]
_REFERENCE = re.compile(
    r"(?P<repository>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(@(?P<revision>[\w][\w./-]{0,199}))?", re.ASCII
)


def open_hub(model: str, *, progress: Progress | None = None) -> HuggingFaceSource:
    """Download `HF://org/name[@revision]` and open it. Raises UsageError, EngineError, ModelFileError."""
    match = _REFERENCE.fullmatch(model[len(PREFIX) :])
    if match is None or ".." in model or "--" in match["repository"]:
        raise UsageError(
            f"{model!r:.200} is not a Hugging Face repository: expected HF://org/name or HF://org/name@revision"
        )
    folder = _download(match["repository"], match["revision"], progress)
    return HuggingFaceSource(folder, name=match["repository"].split("/")[1])


def _download(repository: str, revision: str | None, progress: Progress | None) -> Path:
    """The folder of a complete snapshot of what the compiler reads."""
    from huggingface_hub import errors, snapshot_download

    home = os.environ.get("MLC_LLM_HOME")
    label = f"HF://{repository}" + (f"@{revision}" if revision else "")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=Path(home).expanduser() / "hub" if home else None,
                allow_patterns=_PATTERNS,
                ignore_patterns=_IGNORED,
                tqdm_class=_progress_bar(progress, label),
            )
        )
    except errors.GatedRepoError:
        raise UsageError(
            f"{label} is gated: accept its terms on its page, then set HF_TOKEN to a token of that account"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UsageError(f"{label} does not exist, or is private: check the name, or set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise UsageError(f"{label}: the repository has no revision {revision}") from None
    except errors.LocalEntryNotFoundError as error:
        raise EngineError(
            f"{label} is not (fully) in the cache and the hub cannot be reached: {_reason(error)}"
        ) from None
    except Exception as error:  # whatever the HTTP library of this huggingface_hub raises
        raise EngineError(f"{label} could not be downloaded: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """The root cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line for line in str(error).splitlines() if line.strip()), "no details")
    return f"{type(error).__name__}: {first:.200}"


def _progress_bar(progress: Progress | None, label: str) -> Any:
    """A tqdm class that draws nothing and passes the byte counts on."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    lock = threading.Lock()
    seen = {"done": 0, "total": 0}

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
            # Bars count files too ("it"), and bytes both received and written: the furthest of those is shown.
            if progress is None or self.unit != "B":
                return
            with lock:
                seen["done"] = max(seen["done"], int(self.n))
                seen["total"] = max(seen["total"], int(self.total or 0))
                progress(min(seen["done"], seen["total"]), seen["total"], label)

    return Bar
