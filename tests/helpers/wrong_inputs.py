"""What a case of wrong input is, and how its files and its machine are made wrong."""

import errno
import json
import os
import platform
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 264
SHARD = "compiled/params_shard_0.bin"
WEIGHTS = "tiny-llama/model.safetensors"
LIBRARY = "compiled/tiny-llama-q0f32-cpu.so"


def nothing(where: Any) -> None:
    """Nothing is prepared."""


@dataclass(frozen=True)
class Case:
    """One wrong input. `command` is what a user types, with variables before it, or a Python expression.

    `given` prepares the folder, `patch` the machine (its argument is pytest's MonkeyPatch). `file_limit` bounds the
    bytes of a file that is written, as `ulimit -f` does.
    """

    wrong: str
    command: str
    line: str
    code: int = 1
    given: Callable[[Path], None] = nothing
    patch: Callable[[Any], None] = nothing
    stdin: bytes = b""
    file_limit: int | None = None

    @property
    def shown(self) -> str:
        """The command as the page shows it."""
        return f"... | {self.command}" if self.stdin else self.command

    @property
    def is_python(self) -> bool:
        return re.match(r"([A-Z_]+=\S+ )*mlc ", self.command) is None


Step = Callable[[Path], None]


def steps(*parts: Step) -> Step:
    """One step after the other."""

    def run(folder: Path) -> None:
        for part in parts:
            part(folder)

    return run


def write(name: str, content: str | bytes) -> Step:
    def run(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return run


def cut(name: str, keep: int) -> Step:
    """Keep the first bytes only, or with a negative number leave the last ones out."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep]) and None


def flip(name: str, position: int) -> Step:
    def run(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[position] ^= 1
        (folder / name).write_bytes(content)

    return run


def remove(name: str) -> Step:
    return lambda folder: (folder / name).unlink()


def rename(name: str, new: str) -> Step:
    return lambda folder: (folder / name).rename(folder / new) and None


def change(name: str, **values: Any) -> Step:
    """Change fields of a JSON object; `a__b` is field b of object a, None removes one."""

    def run(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for path, value in values.items():
            *parents, last = path.split("__")
            target = content
            for parent in parents:
                target = target[int(parent) if parent.isdigit() else parent]
            target.pop(last, None)
            if value is not None:
                target[last] = value
        (folder / name).write_text(json.dumps(content))

    return run


def change_tensor(name: str, **values: Any) -> Step:
    """Change a tensor's record in the header of the safetensors file."""

    def run(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        header[name] |= values
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return run


def change_value(name: str, value: float) -> Step:
    """Change the first number of a tensor."""

    def run(folder: Path) -> None:
        import numpy as np
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        tensors[name].reshape(-1)[0] = np.float32(value)
        save_file(tensors, folder / WEIGHTS)

    return run


def gguf(*, offset: int | None = None, keep: int | None = None, tensor_type: int = 0, name: str = "llama") -> Step:
    """`tiny.gguf` with two tensors: the second one at `offset`, the file cut to `keep` bytes."""

    def run(folder: Path) -> None:
        def text(value: bytes) -> bytes:
            return struct.pack("<Q", len(value)) + value

        def tensor(label: bytes, start: int) -> bytes:
            return text(label) + struct.pack("<IQIQ", 1, 32, tensor_type, start)

        head = struct.pack("<4sIQQ", b"GGUF", 3, 2, 1)
        head += text(b"general.architecture") + struct.pack("<I", 8) + text(name.encode())
        head += tensor(b"token_embd.weight", 0) + tensor(b"output_norm.weight", 128 if offset is None else offset)
        content = head + b"\0" * (-len(head) % 32) + b"\0" * 256
        (folder / "tiny.gguf").write_bytes(content[:keep])

    return run


def locked(name: str) -> Step:
    """A folder that nobody may write to."""

    def run(folder: Path) -> None:
        (folder / name).mkdir(mode=0o555)

    return run


def without_extensions(patch: Any) -> None:
    """A processor that lacks what `other_processor` has, where this one does not lack it."""
    from mlc_llm.runtime import library

    features = frozenset(library.cpu_features() - {"amx_tile", "amx_int8", "amx_bf16", "sve"})
    patch.setattr(library, "cpu_features", lambda: features)


def other_processor() -> str:
    """A processor that few machines have."""
    return "neoverse-v2" if platform.machine() in ("aarch64", "arm64") else "graniterapids"


def little_room(patch: Any) -> None:
    """A disk of which 65536 bytes are free."""
    usage = shutil.disk_usage("/")
    patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=65536))


def no_room_to_link(patch: Any) -> None:
    """A disk that has no room for what is set aside for the linker."""

    def refuse(*args: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "posix_fallocate", refuse)


def without_ziglang(patch: Any) -> None:
    """A machine on which nothing but its own compiler links."""
    from mlc_llm.compiler import link

    patch.setattr(link, "_zig", lambda: None)


def write_model(folder: Path) -> None:
    """A Llama of two tiny layers as Hugging Face publishes one, with ChatML and a token for each byte."""
    import numpy as np
    import tiny_model
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "vocab_size": VOCAB,
        "bos_token_id": None,
        "eos_token_id": 257,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, 48),
        "model.norm.weight": (48,),
        "lm_head.weight": (VOCAB, 48),
    }
    for i in range(2):
        layer = {
            "input_layernorm": (48,),
            "post_attention_layernorm": (48,),
            "self_attn.q_proj": (48, 48),
            "self_attn.k_proj": (24, 48),
            "self_attn.v_proj": (24, 48),
            "self_attn.o_proj": (48, 48),
            "mlp.gate_proj": (80, 48),
            "mlp.up_proj": (80, 48),
            "mlp.down_proj": (48, 80),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    random = np.random.default_rng(0)
    tensors = {name: random.standard_normal(shape, np.float32) * np.float32(0.1) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 257}))
    tiny_model.tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"chat_template": tiny_model.CHATML, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
