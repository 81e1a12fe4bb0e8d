"""`mlc gen_config`: only the configuration and the tokenizer files, with upstream's flags."""

from pathlib import Path

import click

from .options import FILE_OR_FOLDER, model_type_option, quantization_option
from .progress import show_progress


@click.command("gen_config", short_help="Write the configuration of a model, and no more.")
@click.argument("config")
@quantization_option(required=True)
@click.option("-o", "--output", type=FILE_OR_FOLDER, required=True, metavar="DIR", help="Folder for the files.")
@click.option("--conv-template", metavar="NAME", help="Conversation template, instead of the model's own.")
@model_type_option()
@click.option("--context-window-size", type=int, metavar="N", help="Longest conversation in tokens.")
@click.option("--sliding-window-size", type=int, metavar="N", help="Tokens that attention looks back; -1 for all.")
@click.option("--prefill-chunk-size", type=int, metavar="N", help="Tokens of a prompt that are computed at once.")
@click.option("--attention-sink-size", type=int, metavar="N", help="First tokens that a sliding window keeps.")
@click.option("--max-batch-size", type=int, metavar="N", help="Most conversations at once.")
@click.option("--tensor-parallel-shards", type=int, metavar="N", help="Must be 1 in this version.")
@click.option("--pipeline-parallel-stages", type=int, metavar="N", help="Must be 1 in this version.")
@click.option("--disaggregation", type=bool, metavar="BOOLEAN", help="Must be false in this version.")
def command(
    config: str, quantization: str, output: Path, conv_template: str | None, model_type: str, **sizes: int | None
) -> None:
    """Write mlc-chat-config.json and the tokenizer files of the model at CONFIG into a folder.

    CONFIG is a Hugging Face folder or its config.json, a .gguf file, HF://org/name or a built-in name. `mlc compile`
    does this and all the rest in one go.
    """
    from ..compiler.compile import gen_config

    overrides = ";".join(f"{name}={int(value)}" for name, value in sizes.items() if value is not None)
    with show_progress() as progress:
        gen_config(
            config, quantization, output,
            conv_template=conv_template, model_type=model_type, overrides=overrides, progress=progress,
        )  # fmt: skip
    click.echo(f"{output}: configuration and tokenizer written")
