"""The page in a real browser: a chat that streams, probabilities to read, stages to switch, tokens to count."""

import re
import shutil
import time

import pytest
from scripted import ALPHABET

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="needs Chromium: apt-get install chromium")]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of jaxgpt[test]")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def page(browser, server):
    """The page, freshly loaded; at the end nothing was wrong and nothing was fetched from elsewhere."""
    context = browser.new_context()
    context.set_default_timeout(180_000)  # the first answer of a stage compiles
    page, wrong, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    until(page, "document.querySelectorAll('#stage option').length === 3")
    yield page
    context.close()
    assert wrong == [] and all(url.startswith((server.url, "data:")) for url in asked)


def until(page, expression, seconds=180):
    """Waits for what an expression says; Playwright's own way would evaluate text, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def choose(page, stage):
    page.select_option("#stage", stage)


def test_a_chat_streams_and_the_stage_can_be_switched(page):
    choose(page, "assistant")
    page.fill("#message", "hello <b>there</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#retry:visible")
    assert [turn.inner_text() for turn in page.query_selector_all(".turn")] == ["hello <b>there</b>", "assistant\nHI"]
    assert page.query_selector(".turn b") is None  # what was typed is text
    choose(page, "base")
    page.evaluate("document.getElementById('chat-max').value = 240")
    page.evaluate("""() => { window.lengths = []; new MutationObserver(() => {
        if (turns.at(-1).role === 'assistant') window.lengths.push(textOf(turns.at(-1)).length);
        }).observe(document.getElementById('log'), {childList: true, subtree: true}); }""")
    page.fill("#message", "and you?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#retry:visible")
    answer = page.query_selector_all(".turn.assistant")[-1].inner_text()
    assert answer.startswith("base\n" + ALPHABET[:10]) and len(answer) > 150
    lengths = page.evaluate("window.lengths")
    assert len(set(lengths)) > 10 and lengths == sorted(lengths)  # it grew under the reader's eyes


def test_escape_stops_an_answer(page):
    choose(page, "base")
    page.evaluate("document.getElementById('chat-max').value = 240")
    page.fill("#message", "go")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant.busy")
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:visible")
    assert page.query_selector("#alert:visible") is None


def test_a_probability_is_read_and_another_token_chosen(page):
    choose(page, "base")
    page.click("#tab-play")
    page.fill("#prompt", "abc")
    page.fill("#play-temperature", "0")
    page.fill("#play-max", "5")
    page.click("#run")
    until(page, "document.querySelectorAll('#played .token').length === 9")  # bos, the prompt, the answer
    assert page.inner_text("#played") == "<|bos|>abcdefgh"
    token = page.query_selector_all("#played .token")[5]
    assert token.get_attribute("aria-label") == "e, 96.9%"
    token.hover()
    assert re.search(r"e\s*96\.9%", page.inner_text("#pop")) and page.query_selector_all("#pop .choice")[0].inner_text()
    other = page.query_selector_all("#pop button.choice")[1]
    name = other.inner_text().split()[0]
    other.click()
    until(page, "document.querySelectorAll('#played .token').length === 11")
    assert page.inner_text("#played").startswith("<|bos|>abcd") and name not in ("e", "")
    assert page.query_selector_all("#played .token")[5].get_attribute("aria-label").startswith(name)


def test_a_text_is_tokenized_and_looked_into(page):
    page.click("#tab-tok")
    page.fill("#tok-text", "né!")
    until(page, "document.querySelector('.figures b')?.textContent === '4'")
    page.query_selector_all("#tok-panels .token")[1].hover()
    assert "c3" in page.inner_text("#pop") and "id 195" in page.inner_text("#pop")
    page.keyboard.press("Escape")
    page.click("#tab-look")
    page.wait_for_selector("#stack .layer")
    assert "layer × 2" in page.inner_text("#stack") and "264 × 264" in page.inner_text("#stack")
    page.fill("#look-text", "abx")
    page.click("#look-run")
    page.wait_for_selector("#lens td")
    last = page.query_selector_all("#lens tbody tr:first-child td")
    assert [cell.inner_text() for cell in last][1:] == ["b", "c", "y"]
    assert len(page.query_selector_all("#heads .head")) == 4


def test_tabs_by_keyboard_on_a_narrow_screen(browser, server):
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    page.goto(server.url)
    until(page, "document.querySelectorAll('#stage option').length === 3")
    page.focus("#tab-chat")
    for name in ("play", "tok", "look"):
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"#{name}:visible")
        assert page.evaluate("document.activeElement.id") == f"tab-{name}"
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unlabelled = page.evaluate("""() => [...document.querySelectorAll('input, select, textarea, button, canvas')]
        .filter(node => !node.labels?.length && !node.getAttribute('aria-label') && !node.textContent.trim())
        .map(node => node.id)""")
    assert unlabelled == []
    context.close()
