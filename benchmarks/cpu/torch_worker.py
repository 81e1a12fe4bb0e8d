"""One measurement with transformers on torch: prints tokens per second, or an answer."""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer


@torch.inference_mode()
def measure(model: "torch.nn.Module", work: argparse.Namespace) -> float:
    """Tokens per second of a prompt, or of `work.generate` steps after one."""
    ids = torch.randint(100, 40000, (work.batch, work.tokens))
    begin = time.perf_counter()
    result = model(ids, use_cache=True, logits_to_keep=1)
    token = result.logits[:, -1:].argmax(-1)
    if work.kind == "prefill":
        return work.tokens / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for _ in range(work.generate):
        result = model(token, past_key_values=result.past_key_values, use_cache=True)
        token = result.logits[:, -1:].argmax(-1)
    return work.batch * work.generate / (time.perf_counter() - begin)


def main() -> None:
    """Load, warm up, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--kind", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--prompt")
    for name in ("--tokens", "--generate", "--batch", "--threads"):
        parser.add_argument(name, type=int, required=True)
    work = parser.parse_args()
    torch.set_num_threads(work.threads)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=work.dtype)
    if work.kind in ("start", "memory"):
        tokenizer = AutoTokenizer.from_pretrained(work.model)
        inputs = tokenizer(work.prompt, return_tensors="pt")
        streamer = TextStreamer(tokenizer, skip_prompt=True)
        model.generate(**inputs, max_new_tokens=work.generate, do_sample=False, streamer=streamer)
        return
    measure(model, argparse.Namespace(kind="prefill", batch=work.batch, tokens=32))
    print(measure(model, work))


if __name__ == "__main__":
    main()
