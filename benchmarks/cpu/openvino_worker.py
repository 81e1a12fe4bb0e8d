"""One measurement with OpenVINO GenAI, in the Python that has it: prints tokens per second, or an answer."""

import argparse
import time

import numpy as np
import openvino as ov
import openvino_genai as genai

_seed = iter(range(1000))


def generate(pipeline: "genai.LLMPipeline", tokens: int, count: int, batch: int) -> tuple[float, float]:
    """Seconds to the first tokens, and from then on, of `batch` different random prompts."""
    ids = np.random.default_rng(next(_seed)).integers(100, 40000, (batch, tokens)).astype(np.int64)
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    config = genai.GenerationConfig(
        max_new_tokens=count, min_new_tokens=count, ignore_eos=True, do_sample=False
    )  # fmt: skip
    begin = time.perf_counter()
    result = pipeline.generate(inputs, config)
    seconds = time.perf_counter() - begin
    first = result.perf_metrics.get_ttft().mean / 1000
    return first, seconds - first


def main() -> None:
    """Load, warm up, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--kind", required=True)
    parser.add_argument("--prompt")
    for name in ("--tokens", "--generate", "--batch", "--threads"):
        parser.add_argument(name, type=int, required=True)
    work = parser.parse_args()
    pipeline = genai.LLMPipeline(work.model, "CPU", INFERENCE_NUM_THREADS=work.threads)
    if work.kind in ("start", "memory"):
        config = genai.GenerationConfig(max_new_tokens=work.generate, do_sample=False, apply_chat_template=False)
        pipeline.generate(work.prompt, config, lambda text: print(text, end="", flush=True))
        return
    generate(pipeline, 32, 4, work.batch)
    if work.kind == "prefill":
        first, _ = generate(pipeline, work.tokens, 1, 1)
        print(work.tokens / first)
        return
    _, rest = generate(pipeline, work.tokens, work.generate + 1, work.batch)
    print(work.batch * work.generate / rest)


if __name__ == "__main__":
    main()
