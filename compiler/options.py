"""What the user asks of `mlc compile`, and the same with every value checked."""

from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import UsageError
from .optimization import Optimization, parse_opt
from .overrides import Overrides, parse_overrides
from .quantization.choice import check_quantization
from .target.host import LIBRARY_SUFFIXES, parse_host
from .target.target import CompileTarget, resolve_target


@dataclass(frozen=True)
class CompileOptions:
    """The options of `mlc compile`, as given.

    quantization: None is q4f16_1, or the blocks of a GGUF file as they are, or what a compiled folder is quantized to.
    output: None puts everything below `dist/`; `x.so`, or `x.dylib` for Apple's systems, names the library; any other
        path is the model folder, and the library goes into it.
    conv_template: a name of `templates.NAMED_TEMPLATES`; None takes the model's own.
    """

    model: str
    quantization: str | None = None
    device: str = "auto"
    host: str = "auto"
    model_type: str = "auto"
    overrides: str = ""
    opt: str = "O2"
    output: Path | None = None
    conv_template: str | None = None
    debug_dump: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class CheckedOptions:
    """Options whose values are known to be good; nothing has been read or written to find out."""

    model: str
    quantization: str | None
    target: CompileTarget
    model_type: str
    overrides: Overrides
    opt: Optimization
    output: Path | None
    conv_template: str | None
    debug_dump: Path | None
    force: bool

    @property
    def names_library(self) -> bool:
        """Whether `output` is the library's file rather than the model folder."""
        return self.output is not None and self.output.suffix in LIBRARY_SUFFIXES


def check_options(options: CompileOptions) -> CheckedOptions:
    """Check every option that can be checked before the model is opened. Raises UsageError."""
    output = None if options.output is None else options.output.expanduser()
    if output is not None and output.suffix in (".dll", ".tar", ".lib", ".wasm", ".a", ".o"):
        raise UsageError(f"-o {output}: this version writes .so and .dylib libraries only; name a folder or a .so file")
    if output is not None and output.suffix in LIBRARY_SUFFIXES and output.is_dir():
        raise UsageError(f"-o {output} is a folder: a {output.suffix} path names the library's file")
    if output is not None and output.suffix not in LIBRARY_SUFFIXES and output.exists() and not output.is_dir():
        raise UsageError(f"-o {output} is a file: name a folder for the model, or a .so file for its library")
    check_conv_template(options.conv_template)
    if options.quantization is not None:
        check_quantization(options.quantization)
    overrides = parse_overrides(options.overrides)
    target = resolve_target(options.device, options.host)
    host = parse_host(target.host_triple)
    if output is not None and output.suffix == ".dylib" and not host.is_apple:
        raise UsageError(f"-o {output}: libraries for {host.triple} are .so files; name a folder or a .so file")
    return CheckedOptions(
        model=options.model,
        quantization=options.quantization,
        target=target,
        model_type=options.model_type,
        overrides=overrides,
        opt=parse_opt(options.opt, target.device),
        output=output,
        conv_template=options.conv_template,
        debug_dump=options.debug_dump,
        force=options.force,
    )


def check_conv_template(name: str | None) -> None:
    """Raises UsageError for a conversation template that nobody knows."""
    from ..templates import ConversationError, named_template

    if name is not None:
        try:
            named_template(name)
        except ConversationError as error:
            raise UsageError(f"--conv-template: {error}") from None
