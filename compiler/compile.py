"""The compile driver: source weights to a model folder and its library, all at once or stage by stage."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.artifact import ChatConfig, library_places, load_chat_config
from .inputs import compiled_config, folder_config, open_model
from .layout import compiled_folder, folder_layout, source_layout
from .link import find_linker
from .optimization import parse_opt
from .options import CompileOptions, check_conv_template, check_options
from .overrides import parse_overrides
from .plan import CompilePlan, plan
from .progress import SILENT, Progress, downloads
from .quantization.choice import check_quantization, choose_scheme
from .stages import build_folder, build_library_file, writing
from .target.target import resolve_target
from .weights import WeightSummary, plan_weights

__all__ = [
    "CompileOptions",
    "CompilePlan",
    "CompileResult",
    "Progress",
    "compile_library",
    "compile_model",
    "convert_weight",
    "gen_config",
    "plan",
]


@dataclass(frozen=True)
class CompileResult:
    """What a compilation made. `stages` says of config, weights and library: "built" or "up to date".

    `found_by_itself`: whether a chat with the folder finds this library without being told.
    """

    folder: Path
    library: Path
    model_type: str
    quantization: str
    device: str
    stages: dict[str, str]
    found_by_itself: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values, paths as text."""
        return {**asdict(self), "folder": str(self.folder), "library": str(self.library)}


def compile_model(options: CompileOptions, progress: Progress = SILENT) -> CompileResult:
    """Run every stage that is not up to date; of a compiled folder, only the library.

    Raises UsageError for options, ModelFileError for the model's files, EngineError for this machine (no linker,
    disk full). Whatever ends a stage leaves what was there before.
    """
    checked = check_options(options)
    find_linker(checked.target.host_triple)
    folder = compiled_folder(options.model, weights=False)
    if folder is not None:
        config = compiled_config(folder, checked)
        layout = folder_layout(folder, config, checked)
        compiled_folder(options.model, downloads(progress))  # the weights, now that nothing speaks against it
        stages = {}
    else:
        model = open_model(options.model, checked.model_type, checked.overrides, progress)
        scheme = choose_scheme(checked.quantization, model.source, model.weights)
        layout = source_layout(model.source.name, scheme.name, checked)
        with writing(layout.folder, progress):
            stages = build_folder(
                model,
                scheme,
                layout.folder,
                conv_template=checked.conv_template,
                overrides=checked.overrides,
                force=checked.force,
                progress=progress,
            )
        config = load_chat_config(layout.folder)
    stages["library"] = build_library_file(
        config,
        layout.library,
        checked.target,
        opt=checked.opt,
        debug_dump=checked.debug_dump,
        force=checked.force,
        progress=progress,
    )
    device = checked.target.device
    places = library_places(layout.folder, config, device)
    found = next((place.resolve() for place in places if place.is_file()), None) == layout.library.resolve()
    return CompileResult(
        layout.folder, layout.library, config.model_type, config.quantization, device, stages, found_by_itself=found
    )


def compile_library(
    folder: Path,
    output: Path,
    *,
    device: str = "auto",
    overrides: str = "",
    opt: str = "O2",
    host: str = "auto",
    debug_dump: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compile the library of a compiled model folder to `output`, unless it is up to date. Returns `output`.

    `force` compiles also what is up to date. Raises UsageError, ModelFileError, EngineError.
    """
    target = resolve_target(device, host)
    config = folder_config(folder, parse_overrides(overrides))
    build_library_file(
        config,
        output,
        target,
        opt=parse_opt(opt, target.device),
        debug_dump=debug_dump,
        force=force,
        progress=progress or SILENT,
    )
    return output


def convert_weight(
    model: str, quantization: str, output: Path, *, model_type: str = "auto", progress: Progress = SILENT
) -> WeightSummary:
    """Write only the quantized weights of MODEL to the folder `output`.

    Raises UsageError, ModelFileError, EngineError.
    """
    check_quantization(quantization)
    opened = open_model(model, model_type, {}, progress)
    scheme = choose_scheme(quantization, opened.source, opened.weights)
    with writing(output, progress):
        build_folder(
            opened,
            scheme,
            output,
            conv_template=None,
            overrides={},
            force=True,
            progress=progress,
            stages=("weights",),
        )
    return plan_weights(opened.weights, scheme)


def gen_config(
    model: str,
    quantization: str,
    output: Path,
    *,
    conv_template: str | None = None,
    model_type: str = "auto",
    overrides: str = "",
    progress: Progress = SILENT,
) -> ChatConfig:
    """Write only `mlc-chat-config.json` and the tokenizer files of MODEL to the folder `output`.

    `conv_template` None takes the model's own chat template. Raises UsageError, ModelFileError, EngineError.
    """
    check_quantization(quantization)
    check_conv_template(conv_template)
    parsed = parse_overrides(overrides)
    opened = open_model(model, model_type, parsed, progress)
    scheme = choose_scheme(quantization, opened.source, opened.weights)
    with writing(output, progress):
        build_folder(
            opened,
            scheme,
            output,
            conv_template=conv_template,
            overrides=parsed,
            force=True,
            progress=progress,
            stages=("config",),
        )
    return load_chat_config(output)
