"""`mlc convert_weight`: only the weights, with upstream's flags."""

from pathlib import Path

import click

from ..runtime.errors import UsageError
from .options import FILE_OR_FOLDER, device_option, model_type_option, quantization_option, refuse
from .output import count, size
from .progress import show_progress

SOURCE_FORMATS = ("auto", "huggingface-safetensor", "gguf", "huggingface-torch", "awq")


@click.command("convert_weight", short_help="Quantize the weights of a model, and no more.")
@click.argument("config")
@quantization_option(required=True)
@click.option("-o", "--output", type=FILE_OR_FOLDER, required=True, metavar="DIR", help="Folder for the weights.")
@model_type_option()
@device_option("What quantizes: auto or cpu.")
@click.option(
    "--source", default="auto", show_default=True, metavar="PATH", help="Where the weights are; auto: where CONFIG is."
)
@click.option(
    "--source-format",
    type=click.Choice(SOURCE_FORMATS),
    metavar="FORMAT",
    default="auto",
    show_default=True,
    help=f"Format of the weights: {', '.join(SOURCE_FORMATS)}; the last two are refused.",
)
@click.option("--lora-adapter", metavar="DIR", help="Refused: merge the adapter into the weights first.")
def command(
    config: str, quantization: str, output: Path, model_type: str, device: str, source: str, source_format: str,
    lora_adapter: str | None,
) -> None:  # fmt: skip
    """Quantize the weights of the model at CONFIG into a folder: params_shard_*.bin and tensor-cache.json.

    CONFIG is a Hugging Face folder or its config.json, a .gguf file, HF://org/name or a built-in name. `mlc compile`
    does this and all the rest in one go.
    """
    from ..compiler.compile import convert_weight

    if device not in ("auto", "cpu", "cpu:0"):
        raise refuse("--device", device, "weights are quantized on the CPU; use auto or cpu")
    if lora_adapter is not None:
        raise refuse("--lora-adapter", lora_adapter, "merge it into the weights first (PEFT's merge_and_unload)")
    _check_source(config, source, source_format)
    with show_progress() as progress:
        summary = convert_weight(config, quantization, output, model_type=model_type, progress=progress)
    click.echo(f"{output}: {count(summary.parameters)} parameters in {size(summary.file_bytes)}, "
               f"{summary.bits_per_parameter:.2f} bits per weight")  # fmt: skip


def _check_source(config: str, source: str, source_format: str) -> None:
    """Config and weights come from one place, in a format that is read. Raises UsageError."""
    if source_format in ("huggingface-torch", "awq"):
        reason = "pickle is not read" if source_format == "huggingface-torch" else "this version has no AWQ"
        raise refuse("--source-format", source_format, f"{reason}; convert the weights to safetensors")
    is_gguf = config.lower().endswith(".gguf")
    if source_format != "auto" and is_gguf != (source_format == "gguf"):
        raise UsageError(f"--source-format {source_format} does not fit {config}: leave it out")
    if source == "auto":
        return
    path, weights = Path(config).expanduser(), Path(source).expanduser()
    if not weights.exists():
        raise UsageError(f"--source {source} does not exist: name the folder of the weights")
    places = {path.resolve(), path.resolve().parent} if path.is_file() else {path.resolve()}
    if weights.resolve() not in places:
        raise UsageError(f"--source {source}: weights are read from where {config} is: put both into one folder")
