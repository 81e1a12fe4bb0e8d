"""The stages of a compilation, each one skipped where its stamp says that it would make the same again."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.artifact import CHAT_CONFIG_NAME, TENSOR_CACHE_NAME, ChatConfig, model_hash
from ..runtime.errors import EngineError, ModelFileError
from ..runtime.locks import locked
from . import stamps
from .chat_config import make_chat_config
from .link import find_linker
from .overrides import Overrides
from .preflight import explained, remove_leftovers
from .progress import steps
from .source.source import write_file
from .stamps import STAMP_NAME
from .tokenizer_form import quicken
from .weights import convert_weights, plan_weights

if TYPE_CHECKING:
    from .inputs import OpenModel
    from .optimization import Optimization
    from .progress import Progress
    from .quantization.choice import AnyScheme
    from .target.target import CompileTarget

LOCK_NAME = ".mlc-lock"
_STAGING_PREFIX = ".mlc-staging-"
_LIBRARY_STEPS = 100


@contextmanager
def writing(folder: Path, progress: "Progress") -> "Iterator[None]":
    """Hold the model folder for one compilation; a folder that stays empty is removed. Raises EngineError."""
    with ExitStack() as stack:
        with explained(folder):
            if not folder.exists():
                missing = [folder, *(parent for parent in folder.parents if not parent.exists())]
                folder.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, missing)
            stack.enter_context(locked(folder / LOCK_NAME, folder, progress.note))
            for left in folder.glob(f"{_STAGING_PREFIX}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        yield


def _remove_if_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def build_folder(
    model: "OpenModel",
    scheme: "AnyScheme",
    folder: Path,
    *,
    conv_template: str | None,
    overrides: Overrides,
    force: bool,
    progress: "Progress",
    stages: tuple[str, ...] = ("config", "weights"),
) -> dict[str, str]:
    """Make the model folder, which the caller holds by `writing`. Returns what was done, by stage.

    The configuration is made first, so that what is wrong with it shows at once, and put into place last: a folder
    that has one is complete.
    """
    done = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=_STAGING_PREFIX) as temporary:
        staged = None
        if "config" in stages:
            key = config_key(model, scheme, conv_template, overrides)
            if not force and _config_is_current(folder, key):
                progress.skip("config", "up to date")
                done["config"] = "up to date"
            else:
                progress.stage("config")
                staged = _stage_config(model, scheme, Path(temporary), conv_template, progress)
        if "weights" in stages:
            done["weights"] = _build_weights(model, scheme, folder, force, progress)
        if staged is not None:
            _install(Path(temporary), staged, folder, key)
            done["config"] = "built"
    return {stage: done[stage] for stage in stages}


def config_key(model: "OpenModel", scheme: "AnyScheme", conv_template: str | None, overrides: Overrides) -> str:
    """What mlc-chat-config.json and the tokenizer files depend on."""
    return stamps.key(
        source=model.source.fingerprint,
        model_type=model.model_type,
        quantization=scheme.name,
        conv_template=conv_template,
        overrides=dict(overrides),
        code=stamps.code_digest("chat_config.py", "tokenizer_info.py", "tokenizer_form.py", "source", "model"),
    )


def weights_key(model: "OpenModel", scheme: "AnyScheme") -> str:
    """What the shards depend on."""
    return stamps.key(
        source=model.source.fingerprint,
        model_type=model.model_type,
        quantization=scheme.name,
        code=stamps.code_digest("weights.py", "shards.py", "quantization", "source", "model"),
    )


def library_key(config: ChatConfig, target: "CompileTarget", opt: "Optimization") -> str:
    """What a library depends on; the whole of the architecture, not only what identifies the model."""
    return stamps.key(
        model_hash=model_hash(config),
        architecture=config.architecture,
        target=target.attributes,
        host=target.host_triple,
        traits=asdict(target.gpu) if target.gpu else None,
        opt=asdict(opt),
        tvm=stamps.tvm_version(),
        code=stamps.code_digest("."),
    )


def _config_is_current(folder: Path, key: str) -> bool:
    stamp = stamps.read_stamps(folder / STAMP_NAME).get("config", {})
    return stamp.get("key") == key and stamps.files_present(folder, stamp.get("files"))


def _stage_config(
    model: "OpenModel", scheme: "AnyScheme", staging: Path, conv_template: str | None, progress: "Progress"
) -> list[str]:
    """Write tokenizer files and configuration to the staging folder; the tokenizer files' names."""
    try:
        names = model.source.write_tokenizer(staging)
        if "tokenizer.json" in names:
            quicken(staging / "tokenizer.json")
        config = make_chat_config(
            model.source,
            model.model_type,
            model.config,
            scheme,
            staging,
            names,
            conv_template=conv_template,
            progress=progress,
        )
        write_file(staging / CHAT_CONFIG_NAME, config.to_json().encode())
    except ModelFileError as error:  # of a copy that is about to vanish: name the model's own file
        raise ModelFileError(str(error).replace(str(staging), model.source.name)) from None
    except EngineError as error:
        raise EngineError(str(error).replace(str(staging), str(staging.parent))) from None
    return names


def _install(staging: Path, tokenizer_files: list[str], folder: Path, key: str) -> None:
    """Move what was staged into the folder, the configuration last; tokenizer files of an earlier model go."""
    stamp = folder / STAMP_NAME
    old = stamps.read_stamps(stamp).get("config", {}).get("files", [])
    stamps.write_stamp(stamp, "config", None)
    with explained(folder):
        (folder / CHAT_CONFIG_NAME).unlink(missing_ok=True)
        for name in set(old) - set(tokenizer_files) - {CHAT_CONFIG_NAME}:
            (folder / Path(name).name).unlink(missing_ok=True)
        for name in [*tokenizer_files, CHAT_CONFIG_NAME]:
            (staging / name).replace(folder / name)
    stamps.write_stamp(stamp, "config", {"key": key, "files": [*tokenizer_files, CHAT_CONFIG_NAME]})


def _build_weights(model: "OpenModel", scheme: "AnyScheme", folder: Path, force: bool, progress: "Progress") -> str:
    key = weights_key(model, scheme)
    stamp = stamps.read_stamps(folder / STAMP_NAME).get("weights", {})
    index = stamps.file_digest(folder / TENSOR_CACHE_NAME)
    if not force and stamp == {"key": key, "index": index} and stamps.weights_present(folder):
        progress.skip("weights", "up to date")
        return "up to date"
    summary = plan_weights(model.weights, scheme)
    progress.stage("weights", summary.file_bytes)
    convert_weights(model.source, model.weights, scheme, folder, progress=steps(progress, summary.file_bytes))
    index = stamps.file_digest(folder / TENSOR_CACHE_NAME)
    stamps.write_stamp(folder / STAMP_NAME, "weights", {"key": key, "index": index})
    return "built"


def build_library_file(
    config: ChatConfig,
    output: Path,
    target: "CompileTarget",
    *,
    opt: "Optimization",
    debug_dump: Path | None,
    force: bool,
    progress: "Progress",
) -> str:
    """Compile the library of a configuration, unless `output` is just that. Returns "built" or "up to date"."""
    key = library_key(config, target, opt)
    stamp_path = output.with_name(f".{output.name}.json")
    if debug_dump is not None:
        with explained(debug_dump):
            debug_dump.mkdir(parents=True, exist_ok=True)
    with explained(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with locked(output.with_name(f".{output.name}.lock"), output, progress.note):
            stamp = stamps.read_stamps(stamp_path).get("library", {})
            current = stamp.get("key") == key and stamp.get("sha256") == stamps.file_digest(output)
            if current and not force and debug_dump is None:
                progress.skip("library", "up to date")
                return "up to date"
            find_linker(target.host_triple)
            remove_leftovers(output)
            progress.stage("library", _LIBRARY_STEPS)
            from .library import build_library

            report = steps(progress, _LIBRARY_STEPS)
            build_library(config, output, target=target, opt=opt, debug_dump=debug_dump, progress=report)
            stamps.write_stamp(stamp_path, "library", {"key": key, "sha256": stamps.file_digest(output)})
            return "built"
