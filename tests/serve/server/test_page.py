"""The chat page and /docs in a headless Chromium, as people use them."""

import json
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from fake_async_engine import TIMEOUT, FakeEngine, chat_chunk
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from mlc_llm.serve.protocol import ChatCompletionRequest, ChatCompletionStreamResponse, Delta, StreamChoice

PATIENCE = 4 * TIMEOUT  # seconds; a browser on a busy machine takes its time
ALLOWED_TAGS = {"P", "H2", "HR", "UL", "OL", "LI", "CODE", "PRE", "STRONG", "EM", "DIV", "BUTTON"}


class Page:
    """The page of a server in the browser, and what a user does with it."""

    def __init__(self, browser: Chrome, server: Any) -> None:
        self.browser, self.server = browser, server
        browser.get(f"{server.url}/")

    def __getitem__(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text.strip() for element in self.all(selector)]

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, PATIENCE, poll_frequency=0.05).until(lambda _: condition())

    def type(self, text: str) -> None:
        """Press keys wherever the focus is."""
        ActionChains(self.browser).send_keys(text).perform()

    def connected(self) -> "Page":
        self.until(lambda: self["model"].text == "tiny")
        return self

    def ask(self, text: str) -> None:
        """A question, and its whole answer."""
        self.type(text + Keys.ENTER)
        self.until(lambda: self["send"].text == "Send")

    @property
    def focused(self) -> str:
        return self.browser.switch_to.active_element.get_attribute("id") or ""


@pytest.fixture
def opened(browser: Chrome, serve: Callable[..., Any]) -> Callable[..., Page]:
    """Open the page of a server with settings of its own."""
    return lambda *args, **settings: Page(browser, serve(*args, **settings))


@pytest.fixture
def page(opened: Callable[..., Page]) -> Page:
    return opened().connected()


def requests_of(browser: Chrome) -> list[str]:
    """Addresses that the browser has asked for since it was last asked for them."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def test_an_answer_appears_while_it_is_made_and_then_its_figures(page: Page) -> None:
    page.type("one two <wait> three" + Keys.ENTER)
    page.server.engine.waiting.get(timeout=PATIENCE)
    page.until(lambda: page.texts(".text") == ["one two"])
    assert page["send"].text == "Stop"
    assert page["question"].get_attribute("value") == ""
    page.server.engine.release()
    page.until(lambda: page["send"].text == "Send")
    assert page.texts(".text") == ["one two three"]
    assert page.texts(".asked") == ["You:\none two <wait> three"]
    assert re.fullmatch(r"[\d.]+ tok/s · first token after [\d.]+ s · 5 \+ 4 tokens", page["figures"].text)
    assert page.browser.title == "tiny"


def stop_with_escape(page: Page) -> None:
    page.type(Keys.ESCAPE)


def stop_with_the_button(page: Page) -> None:
    page["send"].click()


@pytest.mark.parametrize("stop", [stop_with_escape, stop_with_the_button])
def test_stop_ends_the_answer_in_the_engine_and_keeps_what_is_there(stop: Callable[[Page], None], page: Page) -> None:
    engine = page.server.engine
    page.type("one two <wait> three" + Keys.ENTER)
    engine.waiting.get(timeout=PATIENCE)
    page.until(lambda: page.texts(".text") == ["one two"])
    stop(page)
    assert engine.ended.get(timeout=PATIENCE) == "aborted"
    page.until(lambda: page["send"].text == "Send")
    assert page["figures"].text.endswith("stopped")
    assert not page.all(".error")
    page.ask("more")
    assert [message["content"] for message in engine.requests[-1].messages] == [
        "one two <wait> three", "one two ", "more"
    ]  # fmt: skip


def test_shift_enter_begins_a_new_line(page: Page) -> None:
    ActionChains(page.browser).send_keys("one").key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    page.ask("two")
    assert page.server.engine.requests[-1].messages[-1]["content"] == "one\ntwo"


def test_an_empty_question_is_not_sent(page: Page) -> None:
    page.type("  " + Keys.ENTER)
    page.ask("hello")
    assert len(page.server.engine.requests) == 1


@pytest.mark.parametrize(
    ("question", "answer", "error"),
    [
        ("<refuse>", "", "the prompt has 9 tokens, the context 8"),
        ("<overload>", "", "64 requests wait: try again later"),
        ("one <fail>", "one", "the engine is terminated"),
    ],
)
def test_an_error_is_shown_as_it_is(question: str, answer: str, error: str, page: Page) -> None:
    page.ask(question)
    (line,) = page.all(".error span")
    assert (line.text, page.texts(".text")) == (error, [answer])
    assert page.all(".error")[0].aria_role == "alert"
    page.ask("hello")
    assert page.texts(".text") == [answer, "hello"]
    sent = [message["content"] for message in page.server.engine.requests[-1].messages]
    assert sent == ([question, "one ", "hello"] if answer else ["hello"])


def test_a_question_that_failed_can_be_asked_again(page: Page) -> None:
    page.ask("<refuse>")
    page.all(".error button")[0].click()
    page.until(lambda: len(page.server.engine.requests) == 2 and page["send"].text == "Send")
    assert len(page.all("article")) == 1


def test_a_server_that_is_gone_is_told(browser: Chrome, running: Any) -> None:
    with running() as server:
        page = Page(browser, server).connected()
    page.ask("hello")
    assert page.texts(".error span") == ["The server cannot be reached."]


def test_the_page_waits_for_the_model(opened: Callable[..., Page]) -> None:
    page = opened(loaded=False)
    page.until(lambda: page["state"].text == "the model is being loaded: try again soon")
    page.server.loop.call_soon_threadsafe(page.server.service.start, page.server.engine)
    page.connected()
    assert page["state"].text == "Ask something."


def test_the_key_is_asked_for_kept_in_the_tab_and_sent(opened: Callable[..., Page]) -> None:
    page = opened(api_key="sk-right")
    page.until(lambda: page.focused == "key")
    assert page["lock-reason"].text == "This server asks for a key."
    page.type("sk-wrong" + Keys.ENTER)
    page.until(lambda: page["lock-reason"].text == "The server refused this key." and page.focused == "key")
    page.type("sk-right" + Keys.ENTER)
    page.connected()
    assert page.focused == "question"
    page.ask("hello")
    assert page.texts(".text") == ["hello"]
    page.browser.refresh()
    page.connected()
    assert not page["lock"].is_displayed()


def test_without_a_key_the_servers_line_is_shown(opened: Callable[..., Page]) -> None:
    page = opened(api_key="sk-right")
    page.until(lambda: page.focused == "key")
    page.type(Keys.ESCAPE)
    page.until(lambda: page["state"].text.startswith("the API key is missing"))
    assert page.focused == "question"


def test_a_browser_without_the_key_gets_the_page_as_the_body_of_a_401(serve: Callable[..., Any]) -> None:
    keyed, open_ = serve(api_key="sk-right"), serve()
    asked = {"accept": "text/html,*/*;q=0.8"}
    refused = keyed.client.get("/", headers={**asked, "authorization": ""})
    assert (refused.status_code, refused.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert refused.content == keyed.client.get("/").content == open_.client.get("/", headers=asked).content
    other = keyed.client.get("/docs", headers={**asked, "authorization": ""})
    assert (other.status_code, other.json()["error"]["code"]) == (401, "invalid_api_key")


def test_settings_are_sent_and_kept(page: Page) -> None:
    page["toggle"].send_keys(Keys.ENTER)
    for text in ("Be brief.", "0.5", "0.9", "40", "7"):
        page.type(text + Keys.TAB)
    page["question"].click()
    page.ask("hello")
    request = page.server.engine.requests[-1]
    assert request.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert (request.temperature, request.top_p, request.max_tokens, request.seed) == (0.5, 0.9, 40, 7)
    page.browser.refresh()
    assert page["system"].get_attribute("value") == "Be brief."


def test_settings_that_cannot_be_are_not_sent(page: Page) -> None:
    page["toggle"].click()
    page["temperature"].send_keys("3")
    page["toggle"].click()
    page["question"].send_keys("hello" + Keys.ENTER)
    assert page.focused == "temperature"
    assert not page.server.engine.requests
    page.all("button[type=reset]")[0].click()
    page["question"].send_keys(Keys.ENTER)
    page.until(lambda: page.texts(".text") == ["hello"])
    assert page.server.engine.requests[-1].temperature is None


def test_a_new_conversation_ends_the_answer_and_forgets(page: Page) -> None:
    engine = page.server.engine
    page.type("one <wait>" + Keys.ENTER)
    engine.waiting.get(timeout=PATIENCE)
    page["fresh"].click()
    assert not page.all("article")
    assert engine.ended.get(timeout=PATIENCE) == "aborted"
    page.ask("again")
    assert [message["content"] for message in engine.requests[-1].messages] == ["again"]
    assert page.texts(".text") == ["again"]


def test_every_control_has_a_name(page: Page) -> None:
    page["toggle"].click()
    controls = [control for control in page.all("button, input, textarea, a, aside") if control.is_displayed()]
    assert len(controls) == 12
    assert all(control.accessible_name for control in controls)


def test_everything_can_be_reached_with_the_keyboard_and_the_focus_is_seen(page: Page) -> None:
    assert page.focused == "question"
    names = []
    for _ in range(5):
        page.type(Keys.TAB)
        element = page.browser.switch_to.active_element
        if element.tag_name != "body":  # where the page ends and begins
            names.append(element.accessible_name)
            assert element.value_of_css_property("outline-style") == "solid"
    assert names[:4] == ["Send", "New conversation", "Settings", "API"]


class Thinks(FakeEngine):
    """Reasons before it answers."""

    async def complete(self, request: ChatCompletionRequest) -> AsyncGenerator[ChatCompletionStreamResponse, None]:
        for delta in (Delta(role="assistant", content=""), Delta(reasoning_content="let me see"), Delta(content="42")):
            yield chat_chunk(StreamChoice(delta=delta))
        yield chat_chunk(StreamChoice(delta=Delta(), finish_reason="length"))


def test_reasoning_is_folded_away_and_an_answer_that_was_cut_off_is_marked(opened: Callable[..., Page]) -> None:
    page = opened(Thinks()).connected()
    page.ask("what is it")
    assert page.texts(".text") == ["42"]
    (thought,) = page.all(".thought div")
    assert not thought.is_displayed()
    page.all(".thought summary")[0].click()
    assert thought.text == "let me see"
    assert page["figures"].text.endswith("cut off: no room for more tokens")


MARKDOWN = {
    "a\nb\n\nc": "<p>a\nb</p><p>c</p>",
    "**a `b` c** *d*": "<p><strong>a <code>b</code> c</strong> <em>d</em></p>",
    "2 * 3 * 4, `` ` ``, a ** b": "<p>2 * 3 * 4, <code> ` </code>, a ** b</p>",
    "## *a*\nb": "<h2><em>a</em></h2><p>b</p>",
    "---": "<hr>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "3. a\n\n4. b\nc\n\nd": '<ol start="3"><li>a</li><li>b\nc</li></ol><p>d</p>',
    "<b>a</b> &amp;": "<p>&lt;b&gt;a&lt;/b&gt; &amp;amp;</p>",
    "**open `and open": "<p>**open `and open</p>",
}


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown(text: str, page: Page) -> None:
    assert rendered(page, text) == MARKDOWN[text]


def rendered(page: Page, *texts: str) -> str:
    """The HTML after a text has grown through these."""
    script = """
        const element = document.createElement("div");
        for (const text of arguments) show(element, text);
        return element.innerHTML;
    """
    html: str = page.browser.execute_script(script, *texts)
    return html


def test_code_blocks_are_as_they_were_written(page: Page) -> None:
    code = "if a < b:\n    print('**x**')\n\n- no list\n"
    page.browser.execute_script("show(document.getElementById('turns'), arguments[0])", f"~~~py\n{code}~~~\nend")
    assert page.browser.execute_script("return document.querySelector('pre code').textContent") == code
    assert page.texts("#turns p") == ["end"]


def test_a_text_that_grows_looks_as_when_it_comes_at_once(page: Page) -> None:
    text = "# T\n\n1. a **b**\n   - c\n\n```sh\nls `x`\n```\nand `so` on\n\n---\n*end*"
    steps = [text[:end] for end in range(len(text) + 1)]
    assert rendered(page, *steps) == rendered(page, text)


@pytest.mark.parametrize(
    "text",
    [
        "<script>document.title = 'owned'</script>",
        "<img src=x onerror=\"document.title = 'owned'\">",
        "```<svg/onload=alert(1)>\n<iframe src=javascript:alert(1)></iframe>\n```",
        "[a](javascript:alert(1)) **<a href=//evil.example>b</a>**",
        "- <style>*{display:none}</style>\n  1. <base href=//evil.example>",
    ],
)
def test_markup_of_an_answer_is_text(text: str, page: Page) -> None:
    page.browser.execute_script("show(document.getElementById('turns'), arguments[0])", text)
    tags = page.browser.execute_script("return [...document.querySelectorAll('#turns *')].map((one) => one.tagName)")
    assert set(tags) <= ALLOWED_TAGS
    assert page.browser.title == "tiny"


def test_a_long_hostile_text_is_shown_in_time(page: Page) -> None:
    for text in ("*a " * 20_000, "`" * 30_000 + "a", "**" * 20_000, "".join("`" * n + " " for n in range(250))):
        assert rendered(page, text)


def test_no_request_leaves_the_origin(browser: Chrome, serve: Callable[..., Any]) -> None:
    server = serve()
    requests_of(browser)
    page = Page(browser, server).connected()
    page.ask("![a](http://evil.example/a.png) <img src=http://evil.example/b.png>")
    asked = requests_of(browser)
    assert {url.removeprefix(server.url) for url in asked} == {"/", "/v1/models", "/v1/chat/completions"}


def test_the_browser_refuses_what_the_page_may_not_do(page: Page) -> None:
    script = "const done = arguments[0]; fetch('http://localhost:9/').then(() => done('sent'), () => done('refused'));"
    seen = "addEventListener('securitypolicyviolation', (event) => { window.broken = event.violatedDirective })"
    page.browser.execute_script(seen)
    assert page.browser.execute_async_script(script) == "refused"
    page.until(lambda: page.browser.execute_script("return window.broken") == "connect-src")


def test_the_page_is_one_file_that_asks_for_no_other(plain: Any) -> None:
    response = plain.client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert set(re.findall(r'(?:src|href|action)="([^":]*)', response.text)) == {"data", "docs"}
    assert "@import" not in response.text
    assert "url(" not in response.text
    assert "innerHTML" not in response.text


def test_docs_need_no_other_server(browser: Chrome, plain: Any) -> None:
    requests_of(browser)
    browser.get(f"{plain.url}/docs")
    operations = WebDriverWait(browser, PATIENCE).until(lambda _: browser.find_elements(By.CLASS_NAME, "opblock"))
    assert any("/v1/chat/completions" in operation.text for operation in operations)
    asked = requests_of(browser)
    assert f"{plain.url}/openapi.json" in asked
    assert all(url.startswith(f"{plain.url}/") for url in asked)
    assert "http" not in plain.client.get("/docs").text
