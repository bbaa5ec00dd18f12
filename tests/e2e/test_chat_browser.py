"""The web page over a tiny model, in a real Chromium: what a visitor sees and clicks."""

import re
import shutil
import threading

import pytest
import tiny
from PIL import Image

from llava.serve import web
from llava.serve.conversations import Conversations

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
    """Keeps the model ahead of a token until it is let go, once `at` is set to that token's number.

    With `error` the model fails there instead.
    """

    def __init__(self):
        self.at, self.go, self.error = 0, threading.Event(), None

    def __call__(self, *forward) -> None:
        self.at -= 1
        if self.at == 0 and self.error is not None:
            raise self.error
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
    Image.new("RGB", (40, 60), "blue").save(folder / "b.png")
    (folder / "text.png").write_text("What is on a picture?")
    chat = open_chat(str(tiny.save_llava(folder / "model")), device="cpu")
    chat.model.lm_head.register_forward_hook(hold)
    page = web.build(chat, conversations=Conversations(folder / "conversations", days=30))
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
def size():
    """Of the visitor's screen, pixels."""
    return 1280, 900


@pytest.fixture
def page(world, browser, size):
    """A new visitor's page; what it asked of other machines fails the test."""
    context = browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)))
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


def add(page, picture) -> None:
    page.locator("input[type=file]").first.set_input_files(picture)
    page.locator(".multimodal-textbox .thumbnail-item").first.wait_for()


def set_longest(page, longest: int) -> None:
    number = page.get_by_label(re.compile("number input for Longest answer"))
    number.fill(str(longest))
    number.press("Tab")


def ask(page, text: str, picture=None, longest: int = 40) -> None:
    set_longest(page, longest)
    if picture is not None:
        add(page, picture)
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
    page.get_by_text("there is no picture up to this answer").wait_for()


def test_an_example_brings_its_picture_and_question(page):
    page.get_by_text("what shape is in the image?").first.click()
    sync_api.expect(box(page)).to_have_value("what shape is in the image?", timeout=WAIT)
    page.get_by_label("4", exact=True).check()
    ask(page, "what shape is in the image?", longest=8)
    page.locator("#timing", has_text="4 visual of").wait_for()


def says(page, text: str) -> None:
    """The one toast says it, and no panel lies over the page; closes the toast."""
    toast = page.get_by_test_id("toast-text")
    sync_api.expect(toast).to_have_count(1, timeout=WAIT)
    assert text in toast.inner_text()
    assert page.locator(".error").count() == 0
    page.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")


def test_mistakes_of_a_new_visitor_are_said_in_words(world, page):
    box(page).press("Enter")
    says(page, "Ask something")
    page.get_by_role("button", name="Retry").click()
    says(page, "Nothing was asked yet")
    page.get_by_role("button", name="Whole answer").click()
    says(page, "there is no answer")
    add(page, world[0] / "text.png")
    box(page).fill("what is it?")
    box(page).press("Enter")
    says(page, "The file text.png cannot be read: ")
    assert box(page).input_value() == "what is it?"
    assert answers(page).count() == 0


def test_a_mistake_leaves_conversation_and_heat_as_they_are(world, page):
    ask(page, "what is it?", world[0] / "a.png")
    words(page).first.wait_for()
    words(page).first.click()
    page.locator("#heat img").first.wait_for()
    shown = [page.locator(part).inner_text() for part in ("#chat", "#timing", "#words", "#line")]
    box(page).press("Enter")
    says(page, "Ask something")
    add(page, world[0] / "b.png")  # a browser does not take the same file twice in a row
    box(page).fill("<image> or <image>?")
    box(page).press("Enter")
    says(page, "2 <image> for 1 image")
    assert box(page).input_value() == "<image> or <image>?"
    assert [page.locator(part).inner_text() for part in ("#chat", "#timing", "#words", "#line")] == shown
    assert page.locator("#heat img").count() == 1
    box(page).fill("is <image> blue?")
    box(page).press("Enter")
    page.locator("#chat", has_text="is <image> blue?").wait_for()


def test_a_failure_of_the_model_gives_the_page_back(world, page, hold):
    ask(page, "what is it?", world[0] / "a.png")
    words(page).first.wait_for()
    words(page).first.click()
    page.locator("#heat img").first.wait_for()
    parts = ("#chat", "#timing", "#words", "#line")
    shown = [page.locator(part).inner_text() for part in parts]
    hold.error, hold.at = RuntimeError("a bug of ours"), 5
    ask(page, "and now?")
    says(page, "The model failed")
    hold.error = None
    page.locator("#heat img").first.wait_for()
    assert [page.locator(part).inner_text() for part in parts] == shown
    assert box(page).input_value() == "and now?"
    box(page).press("Enter")
    page.locator("#chat", has_text="and now?").wait_for()


def cards(page):
    return page.locator("#budgets article")


def heats(page) -> list[str]:
    """The pictures of the cards, once all cards have one."""
    sync_api.expect(cards(page).locator("img")).to_have_count(4, timeout=WAIT)
    return cards(page).locator("img").evaluate_all("images => images.map(image => image.src)")


def test_the_question_in_the_box_is_answered_at_every_budget_side_by_side(world, page):
    page.get_by_text("what shape is in the image?").first.click()
    sync_api.expect(box(page)).to_have_value("what shape is in the image?", timeout=WAIT)
    set_longest(page, 8)
    page.get_by_role("button", name="Compare budgets").click()
    pictures = heats(page)
    for tokens, text in zip(
        ("36 tokens", "9 tokens", "4 tokens", "1 token"), cards(page).all_inner_texts(), strict=True
    ):
        assert text.startswith(tokens)
        assert re.search(r"First token after \d+ ms", text)
        assert f"{tokens.split()[0]} visual of" in text
    assert len({card.bounding_box()["y"] for card in cards(page).all()}) == 1  # in one row
    assert cards(page).first.locator("img").evaluate("image => image.naturalWidth") == 672
    page.get_by_label("range slider for Layer").press("ArrowLeft")
    page.locator("#budgets", has_text="in layer 1").wait_for()
    assert heats(page)[0] != pictures[0]
    assert box(page).input_value() == "what shape is in the image?"
    assert answers(page).count() == 0
    page.set_viewport_size({"width": 390, "height": 844})
    tops = [card.bounding_box()["y"] for card in cards(page).all()]
    assert tops[0] == tops[1] < tops[2] == tops[3]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_stop_ends_a_comparison_and_a_new_conversation_clears_it(world, page, hold):
    ask(page, "what is it?", world[0] / "a.png", longest=8)
    words(page).first.wait_for()
    hold.go.clear()
    hold.at = 12  # after the token that is not measured, the 8 tokens of the first card and its attention
    page.get_by_role("button", name="Compare budgets").click()
    cards(page).nth(1).filter(has_text="Answering").wait_for()
    page.get_by_role("button", name="Stop").click()
    hold.go.set()
    cards(page).nth(3).filter(has_text="Stopped.").wait_for()
    assert re.search("First token", cards(page).first.inner_text())
    page.get_by_role("button", name="Copy link").click()
    page.locator("#link textarea").wait_for()
    page.get_by_role("button", name="New conversation").click()
    sync_api.expect(cards(page)).to_have_count(0, timeout=WAIT)
    sync_api.expect(page.locator("#link textarea")).to_have_count(0, timeout=WAIT)


def test_a_link_brings_a_conversation_back(world, page):
    ask(page, "what is <it>?", world[0] / "a.png", longest=8)
    words(page).first.wait_for()
    said = [answers(page).first.inner_text(), words(page).all_inner_texts()]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    link = page.locator("#link textarea")
    sync_api.expect(link).to_have_value(re.compile(re.escape(world[1]) + r"\?c=[0-9a-f]{32}$"), timeout=WAIT)
    link = link.input_value()
    assert page.evaluate("navigator.clipboard.readText()") == link
    page.goto(link)
    words(page).first.wait_for()
    assert [answers(page).first.inner_text(), words(page).all_inner_texts()] == said
    assert page.locator("#chat .user img").evaluate("image => image.naturalWidth") == 60
    words(page).first.click()
    page.locator("#heat img").first.wait_for()
    ask(page, "and now?", longest=8)
    answers(page).nth(1).wait_for()
    page.goto(link[:-32] + 32 * "0")
    says(page, "not stored here")
    assert answers(page).count() == 0


def test_emptying_the_conversation_forgets_it(world, page):
    ask(page, "what is it?", world[0] / "a.png", longest=8)
    words(page).first.wait_for()
    page.get_by_role("button", name="Clear").first.click()
    sync_api.expect(words(page)).to_have_count(0, timeout=WAIT)
    ask(page, "why?", longest=8)
    page.locator("#timing", has_text="0 visual of").wait_for()


def test_a_question_typed_while_an_answer_comes_stays_in_the_box(world, page, hold):
    hold.go.clear()
    hold.at = 20
    ask(page, "what is it?", world[0] / "a.png")
    answers(page).first.wait_for()
    box(page).fill("and then?")
    hold.go.set()
    words(page).first.wait_for()
    assert box(page).input_value() == "and then?"


def top(page, part: str) -> float:
    return page.locator(part).first.bounding_box()["y"]


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=str)
def test_a_newcomer_sees_what_the_page_does_and_where_the_model_looked(world, page, size):
    assert page.title() == "LLaVA: model"
    assert page.get_by_role("heading", level=1).inner_text() == "LLaVA: model"
    page.get_by_text("Add a picture or take an example").wait_for()
    example = page.get_by_text("what shape is in the image?")
    for seen in (example, box(page)):
        place = seen.bounding_box()
        assert place["y"] + place["height"] < size[1]
    example.click()
    sync_api.expect(box(page)).to_have_value("what shape is in the image?", timeout=WAIT)
    ask(page, "what shape is in the image?", longest=8)
    words(page).first.wait_for()
    words(page).first.click()
    page.locator("#heat img").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.get_by_role("button", name="Share").count() == 0
    assert page.locator("footer a, footer button").count() == 0
    assert page.get_by_text("what shape is in the image?").count() == 1  # no example is left
    assert page.locator("#chat .label, [data-testid=block-label]:visible").count() == 0
    heat = top(page, "#heat")
    assert heat - top(page, "#chat .bot.message") < size[1] / 2
    assert heat < top(page, "#settings")
    order = page.locator("#chat, #heat, #settings").evaluate_all("parts => parts.map(part => part.id)")
    assert order == ["chat", "heat", "settings"]
    buttons = [page.get_by_role("button", name=name) for name in ("Stop", "Retry", "New conversation")]
    assert len({button.bounding_box()["y"] for button in buttons}) == 1  # beside one another


def test_where_the_model_looked_is_beside_its_answer_at_any_width(world, page):
    ask(page, "what is it?", world[0] / "a.png", longest=8)
    words(page).first.wait_for()
    words(page).first.click()
    page.locator("#heat img").first.wait_for()
    for width in (320, 390, 640, 641, 768, 1024, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 844})
        chat, heat = (page.locator(part).first.bounding_box() for part in ("#chat", "#heat img"))
        assert heat["x"] >= chat["x"] + chat["width"]
        assert heat["x"] + heat["width"] <= width
        assert chat["y"] <= heat["y"]
        assert heat["y"] + heat["height"] <= chat["y"] + chat["height"]
        assert min(chat["width"], heat["width"]) > width / 4
