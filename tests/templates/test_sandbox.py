"""A hostile chat template reaches nothing of Python and cannot occupy the machine."""

import pytest

from mlc_llm.templates import ConversationError, JinjaTemplate, meter

MESSAGES = [{"role": "user", "content": "Hi"}]


def render(source: str) -> str:
    return JinjaTemplate(source, name="t").render(MESSAGES).text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ strftime_now.__globals__.keys() }}",
        "{{ dict.mro() }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ '{m.__class__.__mro__}'.format_map({'m': messages}) }}",
        "{{ (messages|map(attribute='__class__')|first).mro() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ messages[0].pop('role') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace(_private=1) %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'base' %}",
        "{{ lipsum() }}",
        "{{ messages[0].content.encode().__reduce__() }}",
    ],
)
def test_nothing_of_python_can_be_reached(source: str) -> None:
    with pytest.raises(ConversationError, match=r"^t: "):
        render(source)


BUILDS_TOO_MUCH = {
    "repeated text": "{{ 'x' * 10 ** 12 }}",
    "text repeated": "{{ 10 ** 12 * 'x' }}",
    "repeated list": "{{ ([1] * 10 ** 9) | length }}",
    "% width": "{{ '%1000000000d' % 1 }}",
    "% precision": "{{ '%.1000000000f' % 1 }}",
    "% width in a filter": "{{ '%1000000000d' | format(1) }}",
    "% arguments": "{{ ('%s' * 100000) % (['x' * 1000000] * 2) }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "format_map width": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "format arguments": "{{ ('{0}' * 100000).format('x' * 1000000) }}",
    "center": "{{ 'x' | center(10 ** 9) }}",
    "ljust": "{{ 'x'.ljust(10 ** 9) }}",
    "zfill": "{{ 'x'.zfill(10 ** 9) }}",
    "expandtabs": "{{ ('\t' * 10000).expandtabs(100000) }}",
    "indent": "{{ ('\n' * 10000) | indent(1000000) }}",
    "tojson": "{{ ([[1]] * 10000) | tojson(indent=1000000) }}",
    "replace": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "replace nothing": "{{ ('x' * 100000) | replace('', 'y' * 100000) }}",
    "join": "{{ (['a'] * 10000) | join('x' * 1000000) }}",
    "join a generator": "{{ range(100000) | map('string') | join('x' * 100000) }}",
    "wordwrap": "{{ ('a ' * 100000) | wordwrap(1, wrapstring='x' * 100000) }}",
    "translate": "{{ ('x' * 100000).translate({120: 'y' * 100000}) }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 8) | list }}",
    "split": "{{ ('x ' * 10000000).split(' ') | length }}",
    "doubling with ~": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling with +": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling a block": "{% set n = namespace(x='x') %}{% for i in range(60) %}"
    "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "slices": "{% set b = 'x' * 10000000 %}{% set n = namespace(l=[]) %}{% for i in range(10000) %}"
    "{% set n.l = n.l + [b[i:]] %}{% endfor %}",
    "text between tags": "{% set n %}{% for i in range(100000) %}" + "y" * 100000 + "{% endfor %}{% endset %}",
    "loops in loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "loops that skip": "{% for i in range(100000) %}{% for j in range(100000) if j < 0 %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}


@pytest.mark.parametrize("case", BUILDS_TOO_MUCH)
def test_work_is_bounded_before_it_is_done(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_BUILT_CHARS", 1 << 25)
    with pytest.raises(ConversationError, match="the template does more work than 33554432 characters are worth"):
        render(BUILDS_TOO_MUCH[case])


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_SECONDS", 0.0)
    template = "{% for i in range(3) %}{{ i }}{% endfor %}"
    with pytest.raises(ConversationError, match="the template runs for more than 0 seconds"):
        render(template)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError: Range too big"),
        ("{{ 2 ** 5000 }}", "the template computes an integer of more than 4096 bits"),
        ("{{ '%*d' % (10 ** 9, 1) }}", "may not compute the width of a % field"),
        ("{{ '{:>{}}'.format(1, 10 ** 9) }}", "may not compute the width of a format field"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "the template recurses too deeply"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "the template recurses too deeply"),
        ("{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}", "the template recurses too deeply"),
        ("{% for i in range(200) %}" + "y" * 100000 + "{% endfor %}", "the prompt is longer than 16777216 characters"),
    ],
)
def test_other_ways_to_occupy_the_machine_are_refused(source: str, message: str) -> None:
    with pytest.raises(ConversationError) as caught:
        render(source)
    assert message in str(caught.value)


def test_the_allowance_is_for_one_rendering_and_not_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_BUILT_CHARS", 2000)
    template = JinjaTemplate("{% for i in range(5) %}{{ i }}{% endfor %}")
    assert [template.render(MESSAGES).text for _ in range(10)] == ["01234"] * 10


def test_long_conversations_are_no_attack() -> None:
    """A million characters over a thousand turns stay within the allowance."""
    turns = [{"role": role, "content": "word " * 100} for _ in range(1000) for role in ("user", "assistant")]
    source = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim | replace('o', 'oo') }}{% endfor %}"
    assert len(JinjaTemplate(source).render(turns).text) > 1_000_000
