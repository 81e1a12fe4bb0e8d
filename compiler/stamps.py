"""What a stage was made of, kept beside what it made, so that a stage whose inputs are the same is not run again."""

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..runtime.artifact import load_tensor_cache
from ..runtime.checksums import Shard, verify_shards
from ..runtime.errors import ModelFileError
from .source.source import write_file

STAMP_NAME = ".mlc-stages.json"
_ROOT = Path(__file__).parent
_MAX_BYTES = 1 << 20


def key(**inputs: Any) -> str:
    """sha256 over the inputs of a stage, in hexadecimal."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@cache
def code_digest(*parts: str) -> str:
    """sha256 over the compiler's own files below `parts`: an upgrade, or an edit, makes what they built out of date."""
    digest = hashlib.sha256()
    for part in parts:
        path = _ROOT / part
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(f"{file.relative_to(_ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def tvm_version() -> str:
    """The version of the installed apache-tvm, without importing it."""
    return version("apache-tvm")


def read_stamps(path: Path) -> dict[str, Any]:
    """The stamps in a file by stage; {} where there is none, or none that can be read."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        stamps = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(stamps, dict) or not all(isinstance(stamp, dict) for stamp in stamps.values()):
        return {}
    return stamps


def write_stamp(path: Path, stage: str, stamp: dict[str, Any] | None) -> None:
    """Replace the stamp of one stage, or remove it with None. Raises EngineError."""
    stamps = read_stamps(path)
    stamps.pop(stage, None)
    if stamp is not None:
        stamps[stage] = stamp
    write_file(path, (json.dumps(stamps, indent=2) + "\n").encode())


def files_present(folder: Path, names: Any) -> bool:
    """Whether every file that a stamp lists is still there."""
    return isinstance(names, list) and all(isinstance(name, str) and (folder / name).is_file() for name in names)


def weights_present(folder: Path) -> bool:
    """Whether the folder has an index and all of its shards, undamaged."""
    try:
        index, cache = load_tensor_cache(folder)
        shards = []
        for record in cache.records:
            status = (folder / record.dataPath).stat()
            if status.st_size != record.nbytes:
                return False
            shards.append(Shard(folder / record.dataPath, status.st_size, status.st_mtime_ns, record.md5sum))
        verify_shards(index, shards)
    except (ModelFileError, OSError):
        return False
    return True


def file_digest(path: Path) -> str | None:
    """sha256 of a file's content, None where there is no such file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
