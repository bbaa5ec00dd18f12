"""The web page over a tiny model, in a real Chromium: what a visitor sees and clicks."""

import re
import shutil
import threading

import pytest
import tiny
from PIL import Image

from llava.serve import web

pytest.importorskip("gradio", reason="gradio is not installed (extra serve)")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is on this machine")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 60_000  # milliseconds until something counts as missing
LONG = 900  # tokens, seconds of the tiny model


class Hold:
    """Keeps the model ahead of a token until it is let go, once `at` is set to that token's number."""

    def __init__(self):
        self.at, self.go = 0, threading.Event()

    def __call__(self, *forward) -> None:
        self.at -= 1
        if self.at == 0:
            assert self.go.wait(WAIT / 1000)


@pytest.fixture(scope="module")
def hold():
    return Hold()


@pytest.fixture(scope="module")
def world(tmp_path_factory, hold):
    """A folder with a picture, and the page's address."""
    from llava.serve.chat import open_chat

    folder = tmp_path_factory.mktemp("browser")
    Image.new("RGB", (60, 40), "red").save(folder / "a.png")
    chat = open_chat(str(tiny.save_llava(folder / "model")), device="cpu")
    chat.model.lm_head.register_forward_hook(hold)
    page = web.build(chat)
    options = {"prevent_thread_lock": True, "quiet": True, "server_name": "127.0.0.1"}
    _, address, _ = page.launch(**options, **web.launch_options())
    yield folder, address
    page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(world, browser):
    """A new visitor's page; what it asked of other machines fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT)
    page, elsewhere, errors = context.new_page(), [], []
    page.on("request", lambda request: world[1] in request.url or elsewhere.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(world[1])
    box(page).wait_for()
    yield page
    context.close()
    assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == []
    assert errors == []


def box(page):
    return page.get_by_placeholder("Add pictures, and ask about them")


def answers(page):
    return page.locator("#chat .bot.message")


def words(page):
    return page.locator("#words [role=button]")


def ask(page, text: str, picture=None, longest: int = 40) -> None:
    number = page.get_by_label(re.compile("number input for Longest answer"))
    number.fill(str(longest))
    number.press("Tab")
    if picture is not None:
        page.locator("input[type=file]").first.set_input_files(picture)
        page.get_by_label("Remove attachment").or_(page.locator(".thumbnail-item")).first.wait_for()
    box(page).fill(text)
    box(page).press("Enter")


def new_tokens(page) -> int:
    return int(re.search(r" s, (\d+) token", page.locator("#timing").inner_text())[1])


def test_a_picture_is_uploaded_asked_about_answered_and_looked_into(world, page, hold):
    hold.at = 20
    ask(page, "what is it?", world[0] / "a.png")
    answers(page).first.wait_for()  # a part of the answer is there ahead of the rest
    assert words(page).count() == 0
    part = answers(page).first.inner_text()
    hold.go.set()
    words(page).first.wait_for()  # they come with the answer's end
    assert len(answers(page).first.inner_text()) > len(part)
    assert re.match(r"9 visual of \d+ prompt tokens, first token after", page.locator("#timing").inner_text())
    assert page.locator("#chat .user img").count() == 1

    words(page).first.click()
    picture = page.locator("#heat img").first
    picture.wait_for()
    assert "of its attention on the visual tokens" in page.locator("#line").inner_text()
    source = picture.get_attribute("src")
    page.get_by_role("button", name="Whole answer").click()
    page.locator("#line", has_text="The whole answer, layer 2").wait_for()
    assert picture.get_attribute("src") != source
    page.get_by_label("range slider for Layer").press("ArrowLeft")
    page.locator("#line", has_text="The whole answer, layer 1").wait_for()


def test_an_earlier_answers_words_come_back_when_it_is_clicked(world, page):
    ask(page, "what is it?", world[0] / "a.png")
    words(page).first.wait_for()
    first = words(page).all_inner_texts()
    ask(page, "and is it blue?", longest=30)
    answers(page).nth(1).wait_for()
    words(page).first.wait_for()
    assert words(page).all_inner_texts() != first
    answers(page).first.click()
    sync_api.expect(words(page)).to_have_text([text.strip() for text in first], timeout=WAIT)
    words(page).first.click()
    page.locator("#heat img").first.wait_for()


def test_stop_and_retry(world, page):
    ask(page, "what is it?", world[0] / "a.png", longest=LONG)
    answers(page).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    words(page).first.wait_for()
    assert new_tokens(page) < LONG
    page.get_by_label(re.compile("number input for Longest answer")).fill("20")
    page.get_by_role("button", name="Retry").click()
    page.locator("#timing", has_text="20 tokens").wait_for()
    assert answers(page).count() == 1


def test_a_new_conversation_ends_the_answer_and_stays_empty(world, page):
    ask(page, "what is it?", world[0] / "a.png", longest=LONG)
    answers(page).first.wait_for()
    page.get_by_role("button", name="New conversation").click()
    sync_api.expect(answers(page)).to_have_count(0, timeout=WAIT)
    ask(page, "why?", longest=20)
    words(page).first.wait_for()
    assert answers(page).count() == 1
    assert page.locator("#timing").inner_text().startswith("0 visual of")
    words(page).first.click()
    page.get_by_text("no picture was shown until this answer").wait_for()


def test_an_example_brings_its_picture_and_question(page):
    page.get_by_text("what shape is in the image?").first.click()
    sync_api.expect(box(page)).to_have_value("what shape is in the image?", timeout=WAIT)
    page.get_by_label("4", exact=True).check()
    box(page).press("Enter")
    page.locator("#timing", has_text="4 visual of").wait_for()
