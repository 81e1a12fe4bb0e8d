"""md5 sums of weight shards, computed once per version of a file.

A folder whose shards all agree is remembered by an empty file in the cache folder. Its name is a hash of every shard's
path, size, modification time and sum, so any change of any of them means hashing again.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .artifact import cache_home
from .errors import ModelFileError

_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Shard:
    """A shard as it was when its size was checked."""

    path: Path
    size: int
    mtime_ns: int
    md5sum: str | None

    def is_unchanged(self, status: os.stat_result) -> bool:
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


def verify_shards(index: Path, shards: Sequence[Shard]) -> None:
    """Compare every shard that has an md5 sum in the index with it. Raises ModelFileError that names the file."""
    summed = [shard for shard in shards if shard.md5sum is not None]
    for shard in summed:
        if not re.fullmatch(r"[0-9a-f]{32}", shard.md5sum or ""):
            raise ModelFileError(f"{index}: md5sum of {shard.path.name} is not 32 hexadecimal digits")
    stamp = _stamp(summed)
    if stamp is not None and os.path.exists(stamp):  # noqa: PTH110 - Path.exists raises where the folder is forbidden
        return
    from concurrent.futures import ThreadPoolExecutor  # imports logging: 4 ms

    with ThreadPoolExecutor(_THREADS) as pool:
        for shard, found in zip(summed, pool.map(_md5, summed), strict=True):
            if found != shard.md5sum:
                pool.shutdown(cancel_futures=True)
                raise ModelFileError(
                    f"{shard.path}: md5 is {found}, {index.name} says {shard.md5sum}: "
                    "the file is damaged, compile or download it again"
                )
    if stamp is not None:
        _remember(stamp)


def _md5(shard: Shard) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    try:
        with shard.path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
    except OSError as error:
        raise ModelFileError(f"{shard.path} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def _stamp(shards: Sequence[Shard]) -> Path | None:
    """The file that says these shards were verified; None where there is no cache folder."""
    key = hashlib.sha256()
    for shard in shards:
        path = os.fsencode(shard.path.absolute())
        key.update(b"%d %b %d %d %b\n" % (len(path), path, shard.size, shard.mtime_ns, (shard.md5sum or "").encode()))
    try:
        return cache_home() / "verified" / key.hexdigest()
    except RuntimeError:  # no home directory
        return None


def _remember(stamp: Path) -> None:
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    except OSError:
        pass  # then the next start hashes again
