"""A model's family is found from what its folder says."""

import pytest

from mlc_llm.serve.tool_calls import FORMATS, find_format, find_reasoning_marks, new_call_id

# Pieces of the families' own chat templates.
TEMPLATES = {
    "hermes": """{{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}""",
    "llama3_json": """{{- '<|start_header_id|>' }}{{- '"parameters": ' }}""",
    "pythonic": """<|start_header_id|> Respond in the format [func_name1(params_name1=params_value1...)]""",
    "mistral": """{{- "[TOOL_CALLS] [" }}""",
    "mistral_named": """{{- "[TOOL_CALLS]" + name + "[ARGS]" }}""",
    "deepseek": """'<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + '\\n' + '```json'""",
    "deepseek_v3_1": """'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>'""",
    "gemma": """{{ '<start_of_turn>' + role + '\\n' }}""",
    "phi4": """{{- '<|tool_call|>' + (tool_call['function'] | tojson) + '<|/tool_call|>' -}}""",
    "qwen3_coder": """{{- '<tool_call>\\n<function=' + name + '>\\n' }}{{- '<parameter=' + key + '>\\n' }}""",
    "glm4_5": """<tool_call>{{ name }}\n<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v }}</arg_value>\n</tool_call>""",
    "functools": """formatted as functools[{"name": [function name], "arguments": ...}, ...]""",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_tells_the_family(name: str) -> None:
    assert find_format(TEMPLATES[name], "gorilla", "gemma").name == name


@pytest.mark.parametrize(
    ("conv_template", "model_type", "name"),
    [
        ("gorilla-openfunctions-v2", "llama", "gorilla"),
        ("llama-3_1", "llama", "llama3_json"),
        ("llama-4", "llama4", "pythonic"),
        ("ministral3_reasoning", "ministral3", "mistral_named"),
        ("deepseek_r1_qwen", "qwen2", "deepseek"),
        ("gemma3_instruction", "gemma3_text", "gemma"),
        ("phi-4", "phi3", "phi4"),
        ("hermes2_pro_llama3", "llama", "hermes"),
        ("chatml", "qwen2", "hermes"),
        (None, "gemma2", "gemma"),
        (None, None, "hermes"),
    ],
)
def test_without_one_the_names_do(conv_template: str | None, model_type: str | None, name: str) -> None:
    assert find_format(None, conv_template, model_type).name == name
    assert find_format("a template without tools", conv_template, model_type).name == name


def test_marks_of_reasoning_come_from_the_template() -> None:
    for marks in ("<think>", "</think>"), ("[THINK]", "[/THINK]"):
        found = find_reasoning_marks(f"{{{{ '{marks[0]}' + thought + '{marks[1]}' }}}}")
        assert found is not None
        assert (found.open, found.close) == marks
    assert find_reasoning_marks("no thoughts") is None
    assert find_reasoning_marks(None, "llama-3") is None
    assert find_reasoning_marks(None, "deepseek_r1_llama") == find_reasoning_marks(None, "qwen3")


def test_ids_are_new_and_as_short_as_mistral_s_templates_want_them() -> None:
    for name, form in FORMATS.items():
        ids = {new_call_id(form) for _ in range(50)}
        assert len(ids) == 50
        assert all(len(text) == 9 and text.isalnum() for text in ids) == name.startswith("mistral")
