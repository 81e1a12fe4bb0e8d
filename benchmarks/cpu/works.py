"""What is measured: a table of works, and of the forms in which the demo model's weights come."""

from dataclasses import dataclass
from typing import Literal

DEMO_MODEL = "smollm2-135m-instruct"
PROMPT = "What is the capital of France?"
CHAT_PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
)  # what the model's template makes of PROMPT, for programs that are given text
CHAT_CONTEXT = 512  # tokens of the KV cache in `start` and `memory`


@dataclass(frozen=True)
class Work:
    """One column of the table.

    decode: `batch` sequences that hold `tokens` each take `generate` more; tokens per second of all together.
    prefill: a prompt of `tokens`; tokens per second. start: seconds from the start of the process to the first byte of
    the answer to PROMPT. memory: the process's peak in MB while it answers with `generate` tokens.
    """

    name: str
    title: str
    kind: Literal["decode", "prefill", "start", "memory"]
    tokens: int = 32
    generate: int = 128
    batch: int = 1
    busy: bool = False  # beside a process that never rests, bound to one of the cores


WORKS = (
    Work("decode", "decode, tok/s", "decode"),
    Work("prefill-512", "prefill 512, tok/s", "prefill", tokens=512),
    Work("prefill-4096", "prefill 4096, tok/s", "prefill", tokens=4096),
    Work("batch-8", "8 decodes, tok/s in all", "decode", batch=8),
    Work("depth-4096", "decode at 4096, tok/s", "decode", tokens=4096, generate=64),
    Work("depth-7936", "decode at 7936, tok/s", "decode", tokens=7936, generate=64),
    Work("busy", "decode, one core busy, tok/s", "decode", busy=True),
    Work("start", "start to first token, s", "start", generate=1),
    Work("memory", "peak memory, MB", "memory", generate=128),
)

# name -> what it is, and the arguments with which llama-quantize makes it of the bundled file (none: it is that file)
WEIGHTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "q4_1": ("Q4_1 as bundled", (), ""),
    "q4_0-q8_0": (
        "Q4_0 with Q8_0 head",
        ("--output-tensor-type", "q8_0", "--token-embedding-type", "q8_0"),
        "Q4_0",
    ),
    "q4_0": ("Q4_0 throughout", ("--pure",), "Q4_0"),
    "q8_0": ("Q8_0", (), "Q8_0"),
    "f16": ("F16", (), "F16"),
}
