"""Importing the package costs nothing, and every public name is there."""

import subprocess
import sys

import pytest

from mlc_llm import templates


def test_importing_the_package_imports_neither_jinja2_nor_pydantic() -> None:
    code = "import sys, mlc_llm.templates; print({'jinja2', 'pydantic'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_conv_templates_render_without_jinja2() -> None:
    code = (
        "import sys; from mlc_llm.templates import load_template, NAMED_TEMPLATES; from pathlib import Path;"
        "template = load_template(Path(), conv_template=NAMED_TEMPLATES['plain'], prompt_format=None);"
        "print(template.render([{'role': 'user', 'content': 'Hi'}]).text, 'jinja2' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "Hi False\n"


@pytest.mark.parametrize("name", templates.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(templates, name) is not None


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Templates'"):
        templates.Templates  # noqa: B018
