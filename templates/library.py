"""Conversation templates by name, for models that bring none. Names, texts and token ids are MLC's, so that a folder
that carries one of them means the same to MLC; `plain`, `smollm2` and `qwen2_5` are ours.

The token ids are those of the tokenizer that each family began with. Whoever writes one into a folder replaces
`system_prefix_token_ids` and `stop_token_ids` by the model's own where they differ.
"""

import difflib
from typing import Any

from .conversation import ConvTemplate
from .families import SYSTEM, chatml, deepseek3, gemma, llama3, template
from .prompt import ConversationError, shown

_HELPFUL = "You are a helpful assistant."
_HERMES = (
    "a conscious sentient superintelligent artificial intelligence developed by a man named Teknium, and your purpose "
    "and drive is to assist the user with any request they have. You experience emotions and have deep, profound "
    "thoughts and qualia."
)
_PHI = "You are a helpful digital assistant. Please provide safe, ethical and accurate information to the user."
_INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_QWEN_STOP = ["<|endoftext|>", "<|im_end|>"]
_TURNS = ["<|user|>", "<|assistant|>"]
_PHI3_TOKENS: dict[str, Any] = {"prefix": [1], "stop": ["<|endoftext|>"], "stop_ids": [2, 32000, 32001, 32007]}
_DEEPSEEK = template(
    "deepseek",
    ["User", "Assistant"],
    ["\n\n", "<｜end▁of▁sentence｜>"],
    ": ",
    ":",
    prefix=[100000],
    stop=["<｜end▁of▁sentence｜>"],
    stop_ids=[100001],
)

_TEMPLATES = [
    # Without a format: the text goes to the model as it is. `plain` names no token ids, so it fits any tokenizer.
    template("plain", ["", ""], [""]),
    template("LM", ["", ""], [""], prefix=[1], stop_ids=[2]),
    template("gpt2", ["", ""], [""], stop=["</s>"], stop_ids=[50256]),
    template("gpt_bigcode", ["", ""], [""], stop=["<|endoftext|>"], stop_ids=[0]),
    template("codellama_completion", ["", ""], [""], prefix=[1], stop=["</s>"], stop_ids=[2]),
    # ChatML
    chatml(
        "chatml",
        "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.",
        [2],
    ),
    chatml("chatml_nosystem", "", [2], system_template=SYSTEM),
    chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face", [2]),
    chatml("qwen2", _HELPFUL, [151643, 151645], stop=_QWEN_STOP),
    chatml(
        "qwen2_5",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        [151643, 151645],
        stop=_QWEN_STOP,
    ),
    chatml("qwen3", _HELPFUL, [151643, 151645], stop=_QWEN_STOP, strip_reasoning_in_history=True),
    chatml(
        "qwen3_5",
        _HELPFUL,
        [248046, 248044],
        stop=_QWEN_STOP,
        opening="\n<think>",
    ),
    chatml(
        "qwen3_5_nothink",
        _HELPFUL,
        [248046, 248044],
        stop=_QWEN_STOP,
        opening="\n<think>\n\n</think>\n",
    ),
    chatml("open_hermes_mistral", f'You are "Hermes 2", {_HERMES}', [2, 32000]),
    chatml("neural_hermes_mistral", "You are a helpful assistant chatbot.", [2, 32000]),
    chatml("hermes2_pro_llama3", f'You are "Hermes 2", {_HERMES}', [128001, 128009, 128003], tool=True),
    chatml("hermes3_llama-3_1", f"You are Hermes 3, {_HERMES}", [128001, 128008, 128009, 128040], tool=True),
    # Llama and what follows its formats
    template(
        "llama-2",
        ["<s>[INST]", "[/INST]", "[INST]"],
        [" ", " </s>"],
        " ",
        system="You are a helpful, respectful and honest assistant.",
        system_template=f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n",
        prefix=[1],
        stop=["[INST]"],
        stop_ids=[2],
        add_role_after_system_message=False,
    ),
    llama3("llama-3", False, ["<|end_of_text|>", "<|eot_id|>"], [128001, 128009]),
    llama3("llama-3_1", True, [], [128001, 128008, 128009]),
    template(
        "llama-4",
        [f"<|header_start|>{role}" for role in ("user", "assistant", "ipython")],
        ["<|eot|>"],
        "<|header_end|>\n\n",
        system_template="",
        prefix=[200000],
        stop_ids=[200001, 200007, 200008],
        add_role_after_system_message=False,
    ),
    template("codellama_instruct", ["[INST]", "[/INST]"], [" "], " ", prefix=[1], stop=["</s>"], stop_ids=[2]),
    template(
        "mistral_default",
        ["[INST]", "[/INST]", "[INST]"],
        [" "],
        " ",
        "",
        system="Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid harmful, "
        "unethical, prejudiced, or negative content. Ensure replies promote fairness and positivity.",
        system_template=f"[INST] {SYSTEM}",
        prefix=[1],
        stop=["</s>"],
        stop_ids=[2],
        add_role_after_system_message=False,
    ),
    template(
        "tinyllama_v1_0",
        _TURNS,
        ["</s>"],
        "\n",
        system="You are a helpful chatbot.",
        system_template=f"<|system|>\n{SYSTEM}</s>",
        stop=["</s>"],
        stop_ids=[2],
    ),
    template(
        "llava",
        ["USER", "ASSISTANT"],
        [" "],
        ": ",
        ":",
        system="\n",
        prefix=[1],
        stop=["</s>"],
        stop_ids=[2],
        add_role_after_system_message=False,
    ),
    # Gemma and Phi
    gemma("gemma_instruction", 107),
    gemma("gemma3_instruction", 106),
    template("phi-2", ["Instruct", "Output"], ["\n"], ": ", ":", stop=["<|endoftext|>"], stop_ids=[50256]),
    template(
        "phi-3", _TURNS, ["<|end|>\n"], "\n", system=_PHI, system_template=f"<|system|>\n{SYSTEM}", **_PHI3_TOKENS
    ),
    template("phi-3-vision", _TURNS, ["<|end|>\n"], "\n", **_PHI3_TOKENS),
    template(
        "phi-4",
        _TURNS,
        ["<|end|>\n"],
        "\n",
        system=_PHI,
        system_template=f"<|system|>\n{SYSTEM}",
        prefix=[200022],
        stop=["<|endoftext|>", "<|end|>"],
        stop_ids=[199999, 200020],
    ),
    # DeepSeek
    _DEEPSEEK,
    _DEEPSEEK.model_copy(update={"name": "deepseek_v2"}),
    deepseek3("deepseek_v3", "V3", 1),
    deepseek3("deepseek_r1_qwen", "R1", 151643),
    deepseek3("deepseek_r1_llama", "R1", 128001),
    # Others
    template(
        "aya-23",
        ["<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"],
        ["<|END_OF_TURN_TOKEN|>"],
        system="You are Command-R, a brilliant, sophisticated, AI-assistant trained to assist human users by providing "
        "thorough responses.",
        system_template=f"<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{SYSTEM}<|END_OF_TURN_TOKEN|>",
        prefix=[5],
        stop=["<|END_OF_TURN_TOKEN|>"],
        stop_ids=[6, 255001],
    ),
    template(
        "dolly",
        ["### Instruction", "### Response"],
        ["\n\n", "### End\n"],
        ":\n",
        system=_INSTRUCTION,
        stop=["### End"],
        stop_ids=[50256],
    ),
    template("glm", ["问", "答", "问"], ["\n\n"], ": ", ":", prefix=[64790, 64792], stop=["</s>"], stop_ids=[2]),
    template(
        "gorilla",
        ["USER", "ASSISTANT", "USER"],
        ["\n", "</s>"],
        ": ",
        ":",
        system="A chat between a curious user and an artificial intelligence assistant. The assistant provides "
        "helpful, detailed, and polite responses to the user's inquiries.",
        role_templates={"user": "<<question>> {user_message} <<function>> {function_string}"},
        prefix=[1],
        stop=["</s>"],
        stop_ids=[2],
    ),
    template(
        "gorilla-openfunctions-v2",
        ["### Instruction", "### Response", "### Instruction"],
        ["\n", "<|EOT|>"],
        ": ",
        system="You are an AI programming assistant, utilizing the Gorilla LLM model, developed by Gorilla LLM, and "
        "you only answer questions related to computer science. For politically sensitive questions, security and "
        "privacy issues, and other non-computer science questions, you will refuse to answer.",
        role_templates={"user": "<<function>>{function_string}\n<<question>>{user_message}"},
        prefix=[100000],
        stop=["<|EOT|>"],
        stop_ids=[100015],
    ),
    template(
        "llm-jp",
        ["\n\n### 指示:", "\n\n### 応答:"],
        ["", "</s>"],
        "\n",
        system="以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。",
        prefix=[1],
        stop_ids=[2],
    ),
    template(
        "nemotron",
        [f"<extra_id_1>{role}" for role in ("User", "Assistant", "Tool")],
        ["\n"],
        "\n",
        system_template=f"<extra_id_0>System\n{SYSTEM}\n\n",
        prefix=[2],
        stop=["</s>"],
        stop_ids=[3],
    ),
    template(
        "oasst",
        ["<|prompter|>", "<|assistant|>"],
        ["<|endoftext|>"],
        ": ",
        stop=["<|endoftext|>"],
        stop_ids=[2],
    ),
    template("olmo", _TURNS, ["\n"], "\n", prefix=[50279], stop_ids=[50279]),
    template(
        "olmo2",
        _TURNS,
        ["<|endoftext|>\n"],
        "\n",
        system_template=f"<|system|>\n{SYSTEM}\n",
        prefix=[100257],
        stop=["<|endoftext|>"],
        stop_ids=[100257],
    ),
    template(
        "orion", ["Human: ", "Assistant: "], ["\n\n", "</s>"], "", "</s>", prefix=[1], stop=["</s>"], stop_ids=[2]
    ),
    template("redpajama_chat", ["<human>", "<bot>"], ["\n"], ": ", ":", stop=["<human>"], stop_ids=[0]),
    template(
        "rwkv_world",
        ["User", "Assistant"],
        ["\n\n"],
        ": ",
        system="Hi. I am your assistant and I will provide expert full response in full details. Please feel free to "
        "ask any question and I will always answer it.",
        system_template=f"User: hi\n\nAssistant: {SYSTEM}",
        stop=["\n\n"],
        stop_ids=[0],
    ),
    template(
        "stablelm",
        ["<|USER|>", "<|ASSISTANT|>"],
        [""],
        ": ",
        system="<|SYSTEM|># StableLM Tuned (Alpha version)\n"
        "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
        "- StableLM is excited to be able to help the user, but will refuse to do anything that could be considered "
        "harmful to the user.\n"
        "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, and "
        "make jokes.\n"
        "- StableLM will refuse to participate in anything that could harm a human.",
        stop_ids=[50278, 50279, 50277, 1, 0],
    ),
    template("stablelm-3b", _TURNS, ["<|endoftext|>"], "\n", stop=["<|endoftext|>"], stop_ids=[0]),
    template("stablelm-2", _TURNS, ["<|endoftext|>"], "\n", stop=["<|endoftext|>"], stop_ids=[100257]),
    template("wizardlm_7b", ["User", "Response"], ["###"], ": ", ":", prefix=[1], stop=["###"], stop_ids=[2]),
    template(
        "wizard_coder_or_math",
        ["Instruction", "Response"],
        ["\n\n### "],
        ":\n",
        system=_INSTRUCTION,
        prefix=[1],
        stop=["</s>"],
        stop_ids=[2],
    ),
]

NAMED_TEMPLATES: dict[str, dict[str, Any]] = {row.name: row.to_dict() for row in _TEMPLATES}


def named_template(name: str) -> ConvTemplate:
    """The library's template of that name. Raises ConversationError that offers the nearest names."""
    if name in NAMED_TEMPLATES:
        return ConvTemplate.from_dict(NAMED_TEMPLATES[name])
    start = name.lower()[:64]
    near = [known for known in NAMED_TEMPLATES if start and known.lower().startswith(start)]
    near = near[:3] or difflib.get_close_matches(start, NAMED_TEMPLATES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the names are {', '.join(sorted(NAMED_TEMPLATES))}"
    raise ConversationError(f"unknown conversation template {shown(name)}: {hint}", param="conv_template")
