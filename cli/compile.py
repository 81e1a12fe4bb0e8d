"""`mlc compile`: from source weights to a model folder and a model library."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FILE_OR_FOLDER, device_option, model_type_option, quantization_option, refuse
from .output import count, print_json, print_table, size
from .progress import show_progress

if TYPE_CHECKING:
    from ..compiler.compile import CompilePlan, CompileResult


@click.command("compile", short_help="Compile a model for a device.")
@click.argument("model")
@quantization_option(default=" Default: q4f16_1, or a GGUF file's own blocks, or what a compiled folder has.")
@device_option("What the library runs on: auto, cpu, cpu:x86-64-v3, opencl, vulkan, ...; see docs/devices.md.")
@click.option(
    "-o",
    "--output",
    type=FILE_OR_FOLDER,
    metavar="PATH",
    help="A folder for everything, or x.so (x.dylib for Apple's systems) for the library; default: dist/.",
)
@model_type_option()
@click.option(
    "--overrides",
    default="",
    metavar="K=V;K=V",
    help="Change the model's configuration: context_window_size, prefill_chunk_size, sliding_window_size, "
    "attention_sink_size, max_batch_size. kv_cache_dtype=int8 halves the memory of keys and values.",
)
@click.option("--conv-template", metavar="NAME", help="Conversation template, instead of the model's own.")
@click.option(
    "--opt",
    default="O2",
    show_default=True,
    metavar="LEVEL",
    help="O0, O1, O2: accurate, with 16-bit activations. O3: on CPUs faster on long prompts and in batches, with 8-bit "
    'activations. Or one choice: "activation_bits=32" is float32 arithmetic, "cudagraph=1" (in O3) records what '
    "decoding launches on CUDA.",
)
@click.option(
    "--host",
    default="auto",
    show_default=True,
    metavar="TRIPLE",
    help="LLVM triple of the machine that loads it.",
)
@click.option(
    "--debug-dump",
    type=FILE_OR_FOLDER,
    metavar="DIR",
    help="Write the program after each stage, and the kernels' code, here.",
)
@click.option("--force", is_flag=True, help="Build also what is up to date.")
@click.option("--dry-run", is_flag=True, help="Say what would be built and the memory it would take; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--enable-subgroups", is_flag=True, hidden=True)
@click.option("--system-lib-prefix", default="auto", hidden=True)
def command(
    model: str, quantization: str | None, device: str, output: Path | None, model_type: str, overrides: str,
    conv_template: str | None, opt: str, host: str, debug_dump: Path | None, force: bool, dry_run: bool, as_json: bool,
    enable_subgroups: bool, system_lib_prefix: str,
) -> None:  # fmt: skip
    """Compile MODEL: quantized weights, configuration, tokenizer and a library for one device.

    MODEL is a Hugging Face folder, a .gguf file, HF://org/name, a built-in name (smollm2-135m-instruct), or a folder
    that was compiled before, or HF://org/name of one: then only its library is built. What is up to date is not built
    again.

    The blocks of a GGUF file (Q4_0 to Q8_0, Q2_K to Q6_K, IQ4) are kept: every weight has exactly its value in the
    file, and the quantization is called as the file's, q4_k_m for instance. With -q q4f16_1 or another they are
    dequantized and quantized again.

    \b
      mlc compile ./Llama-3.2-1B-Instruct
      mlc compile model.Q4_K_M.gguf
      mlc compile model.Q4_K_M.gguf -q q4f16_1 -o out
      mlc compile HF://Qwen/Qwen2.5-0.5B-Instruct --overrides "context_window_size=4096"
    """
    from ..compiler.compile import CompileOptions, compile_model, plan

    if enable_subgroups:
        raise refuse("--enable-subgroups", "", "they are for WebGPU, whose kernels here do without")
    if system_lib_prefix not in ("auto", ""):
        raise refuse("--system-lib-prefix", system_lib_prefix, "only static libraries need it, not .so")
    options = CompileOptions(
        model=model, quantization=quantization, device=device, host=host, model_type=model_type, overrides=overrides,
        opt=opt, output=output, conv_template=conv_template, debug_dump=debug_dump, force=force,
    )  # fmt: skip
    if dry_run:
        with show_progress() as progress:
            numbers = plan(options, progress)
        print_json(numbers.to_dict()) if as_json else print_plan(numbers)
    else:
        with show_progress() as progress:
            result = compile_model(options, progress)
        print_json(result.to_dict()) if as_json else print_result(result)


def print_plan(plan: "CompilePlan") -> None:
    """Print the numbers of a dry run."""
    print_table([
        ("model folder", f"{plan.folder} (not written)"),
        ("library", f"{plan.library} (not written)"),
        *plan_rows(plan),
    ])  # fmt: skip


def plan_rows(plan: "CompilePlan") -> list[tuple[str, str]]:
    """The rows of a plan that describe the model."""
    return [
        ("model type", plan.model_type),
        ("quantization", f"{plan.quantization}, {plan.bits_per_weight:.2f} bits per weight"),
        ("parameters", f"{count(plan.parameters)} ({plan.parameters})"),
        ("weights", f"{size(plan.weight_bytes)} in memory, {size(plan.file_bytes)} in files"),
        ("context", f"{plan.context_window_size} tokens, prefill in chunks of {plan.prefill_chunk_size}"),
        ("KV cache", f"{size(plan.kv_bytes_per_token)} per token, {size(plan.kv_cache_bytes)} for a full context"),
        ("memory", f"about {size(plan.memory_bytes)} for one conversation of full context on {plan.device}"),
    ]


def print_result(result: "CompileResult") -> None:
    """Print what was built, and what to do next."""
    stages = result.stages
    folder = ", ".join(f"{name} {stages[name]}" for name in ("config", "weights") if name in stages) or "as it was"
    flag = "" if result.found_by_itself else f" --model-lib {result.library}"
    print_table([
        ("model folder", f"{result.folder} ({folder})"),
        ("library", f"{result.library} ({stages['library']})"),
        ("chat", f"mlc chat {result.folder}{flag}"),
    ])  # fmt: skip
