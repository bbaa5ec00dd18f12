"""The web page over a tiny model: through gradio's own client, and by the functions behind its buttons."""

import html
import re
import time
import urllib.request
from types import SimpleNamespace

import pytest
import tiny
from PIL import Image

from llava.serve import examples, web

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

SETTINGS = {"num_tokens": 9, "temperature": 0, "top_p": 1, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, and files that are none, or none that a model can see."""
    folder = tmp_path_factory.mktemp("web")
    Image.new("RGB", (60, 40), "red").save(folder / "a.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "text.png").write_text("What is on a picture?")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "a<b>&c.png").write_text("not a picture")
    Image.new("RGB", (1, 2000), "red").save(folder / "thin.png")
    return folder


@pytest.fixture(scope="module")
def chat(folder):
    from llava.serve.chat import open_chat

    return open_chat(str(tiny.save_llava(folder / "model")), device="cpu")


@pytest.fixture(scope="module")
def world(folder, chat):
    """A folder with a picture, and the page's address."""
    page = web.build(chat)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield folder, address
    page.close()


@pytest.fixture
def client(world):
    return gradio_client.Client(world[1], verbose=False)


def message(text: str, *files) -> dict:
    return {"text": text, "files": [gradio_client.handle_file(str(file)) for file in files]}


def ask(client, text: str, *files, **settings) -> tuple[list, str]:
    """The messages on the page and the timing, after the answer."""
    settings = {**SETTINGS, **settings}
    _, shown, timing = client.predict(message(text, *files), api_name="/ask", **settings)
    return shown, timing


def text_of(shown_message: dict) -> str:
    content = shown_message["content"]
    return content if isinstance(content, str) else content[0]["text"]


def test_an_answer_about_a_picture_comes_with_its_timing(world, client):
    shown, timing = ask(client, "what is it?", world[0] / "a.png")
    assert [part["role"] for part in shown] == ["user", "user", "assistant"]
    assert text_of(shown[-1])
    assert timing.startswith("9 visual of")
    assert "12 tokens at" in timing
    again, timing = ask(client, "and now?")
    assert again[:3] == shown
    assert timing.startswith("9 visual of")  # of the first question's picture


def test_a_smaller_budget_is_kept_to(world, client):
    _, timing = ask(client, "what is it?", world[0] / "a.png", num_tokens=4)
    assert timing.startswith("4 visual of")


def test_the_answer_streams(world, client):
    job = client.submit(message("what is it?", world[0] / "a.png"), api_name="/ask", **SETTINGS)
    job.result(timeout=60)
    texts = [text_of(shown[-1]) for _, shown, _ in job.outputs()]
    assert len(set(texts)) > 3
    assert all(texts[-1].startswith(text) for text in texts)


def test_retry_answers_the_last_question_anew(world, client):
    shown, _ = ask(client, "what is it?", world[0] / "a.png")
    _, again, timing = client.predict(message(""), api_name="/retry", **SETTINGS)
    assert again == shown  # greedy
    assert timing.startswith("9 visual of")


def num_tokens_of(timing: str) -> int:
    return int(re.findall(r", (\d+) token", timing)[0])


def test_stop_ends_the_answer(client, chat):
    question = "what is it?"  # without a picture, which the client would fetch anew with each token
    settings = {**SETTINGS, "max_new_tokens": 200}
    whole = num_tokens_of(ask(client, question, **settings)[1])
    slow = chat.model.register_forward_pre_hook(lambda *_: time.sleep(0.3))
    try:
        job = client.submit(message(question), api_name="/ask", **settings)
        while not job.outputs():
            assert not job.done()
            time.sleep(0.01)
        client.predict(api_name="/stop")
        job.result(timeout=300)
    finally:
        slow.remove()
    assert num_tokens_of(job.outputs()[-1][2]) < whole


def test_visitors_have_conversations_of_their_own(world, client):
    ask(client, "what is it?", world[0] / "a.png")
    other = gradio_client.Client(world[1], verbose=False)
    _, timing = ask(other, "what is it?")
    assert timing.startswith("0 visual of")


class Visitor:
    """Does what gradio does: hands Page's functions what the page shows, and shows what they give."""

    def __init__(self, page):
        self.page, self.visit = page, None
        self.box, self.talk, self.heat, self.column = None, ([], "", None), ([], [], ""), None

    def ask(self, text: str, *files, action: str = "ask") -> None:
        self.box = {"text": text, "files": list(map(str, files))}
        num_answers = self.talk[2]
        for box, shown, visit, timing, answers, column in getattr(self.page, action)(
            self.box, self.visit, *SETTINGS.values()
        ):
            self.box, self.visit, self.column = map(
                kept, (self.box, self.visit, self.column), (box, visit, column)
            )
            self.talk = tuple(map(kept, self.talk, (shown, timing, answers)))
        if self.talk[2] != num_answers:
            *self.heat, self.column = self.page.words(self.visit)

    def look(self, action: str, *arguments) -> None:
        self.heat = tuple(map(kept, self.heat, getattr(self.page, action)(self.visit, 1, *arguments)))

    def state(self) -> tuple:
        """All that is to be left alone by what fails."""
        visit = self.visit
        said = visit and (visit.turn, visit.word, list(visit.chat.turns), list(visit.chat.waiting))
        return self.box, visit, said, self.talk, self.heat, self.column


def kept(old, new):
    return old if new == gradio.skip() else new


@pytest.fixture
def toasts(monkeypatch):
    """The messages of gradio's toasts, which are HTML."""
    messages = []
    monkeypatch.setattr(gradio, "Warning", lambda message, **options: messages.append(message))
    return messages


@pytest.fixture(params=["a new visitor", "a visitor who asked and looked"])
def visitor(request, chat, folder, toasts):
    from llava.serve.page_session import Page

    visitor = Visitor(Page(chat))
    if request.param == "a visitor who asked and looked":
        visitor.ask("what is it?", folder / "a.png")
        visitor.look("look_at_all")
        assert visitor.talk[1].startswith("9 visual of")
    assert toasts == []
    return visitor


@pytest.mark.parametrize(
    ("text", "files", "complaint"),
    [
        ("", [], "Ask something"),
        ("", ["a.png"], "Ask something"),
        (" \n\t", ["a.png"], "Ask something"),
        ("why?", ["broken.png"], "The file broken.png cannot be read"),
        ("why?", ["a.png", "text.png"], "The file text.png cannot be read"),
        ("why?", ["empty.jpg"], "The file empty.jpg cannot be read"),
        ("why?", ["a<b>&c.png"], "The file a<b>&c.png cannot be read"),
        ("why?", ["thin.png"], "1x2000"),
        ("<image> or <image>?", ["a.png"], "2 <image> for 1 image"),
    ],
)
def test_a_mistake_is_said_in_one_whole_toast_and_leaves_the_page_alone(
    visitor, folder, toasts, text, files, complaint
):
    before = visitor.state()
    visitor.ask(text, *(folder / name for name in files))
    box = {"text": text, "files": [str(folder / name) for name in files]}
    assert visitor.state() == (box, *before[1:])
    (toast,) = toasts
    assert complaint in html.unescape(toast)
    assert "<" not in toast
    assert "BytesIO" not in toast
    assert str(folder) not in toast


@pytest.mark.parametrize("visitor", ["a new visitor"], indirect=True)
@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda visitor: visitor.ask("", action="retry"), "Nothing was asked yet"),
        (lambda visitor: visitor.look("look_at_all"), "there is no answer"),
        (
            lambda visitor: visitor.look("look", gradio.SelectData(None, {"index": 0, "value": "a"})),
            "no answer",
        ),
    ],
)
def test_what_needs_an_answer_says_so_ahead_of_any(visitor, toasts, act, complaint):
    before = visitor.state()
    act(visitor)
    assert visitor.state()[1:] == before[1:]
    (toast,) = toasts
    assert complaint in toast


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("action", ["ask", "retry"])
@pytest.mark.parametrize("visitor", ["a visitor who asked and looked"], indirect=True)
def test_a_failure_of_the_model_gives_the_page_back(chat, visitor, toasts, capfd, action, at):
    from llava.serve.page_session import BUG

    calls = []

    def fail(*forward):
        calls.append(forward)
        if len(calls) == at:
            raise RuntimeError("a <bug> of ours")

    before = visitor.state()
    handle = chat.model.lm_head.register_forward_hook(fail)
    visitor.ask("and now?", action=action)
    handle.remove()
    assert visitor.state() == ({"text": "and now?", "files": []}, *before[1:])
    assert toasts == [BUG]
    assert "RuntimeError: a <bug> of ours" in capfd.readouterr().err
    visitor.ask("and now?")
    assert len(visitor.visit.chat.turns) == 2


@pytest.mark.parametrize("visitor", ["a visitor who asked and looked"], indirect=True)
def test_a_failure_of_a_look_leaves_the_heat_alone(visitor, toasts, monkeypatch, capfd):
    from llava.serve.page_session import BUG

    visitor.visit.attention = None
    monkeypatch.setattr(visitor.visit.chat, "attention", lambda number: 1 / 0)
    before = visitor.state()
    visitor.look("look_at_all")
    assert visitor.state() == before
    assert toasts == [BUG]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_bug_after_the_visitor_has_left_is_in_the_log_and_not_on_the_page(toasts, capfd):
    from llava.serve.page_session import _unless_it_fails

    chat = SimpleNamespace(turns=[], waiting=[], timing=None)
    session = SimpleNamespace(chat=chat, shown=[], turn=None, attention=None, is_over=True)

    def answer():
        yield ()
        raise RuntimeError("a bug of ours")

    list(_unless_it_fails(session, "and now?", answer()))
    assert toasts == []
    assert "RuntimeError: a bug of ours" in capfd.readouterr().err


def test_a_mistake_is_no_error_of_the_event(world, client):
    shown, _ = ask(client, "what is it?", world[0] / "a.png")
    ask(client, "", world[0] / "a.png")
    ask(client, "why?", world[0] / "broken.png")
    again, later = ask(client, "and now?")
    assert again[:3] == shown
    assert len(again) == 5
    assert later.startswith("9 visual of")


@pytest.mark.parametrize("name", [None, "llava <7b> & co"])
def test_the_page_is_called_by_its_models_name(chat, name):
    page = web.build(chat, name)
    assert page.title == f"LLaVA: {name or 'model'}"
    (title,) = [block for block in page.blocks.values() if block.elem_id == "title"]
    assert f"<h1>LLaVA: {html.escape(name or 'model')}</h1>" in title.value
    assert "picture" in title.value


def test_the_page_listens_to_this_machine_alone_unless_told():
    args = web.parse_args(["--model-path", "model"])
    assert (args.host, args.share) == ("127.0.0.1", False)


def test_a_visitor_costs_no_copy_of_the_model(world, monkeypatch):
    import torch

    copies = []
    monkeypatch.setattr(
        torch.nn.Module, "__deepcopy__", lambda self, memo: copies.append(self), raising=False
    )
    with urllib.request.urlopen(world[1]) as page:
        assert page.status == 200
    assert copies == []


@pytest.fixture
def comparing(chat):
    from llava.serve.page_comparison import ComparisonActions

    return ComparisonActions(chat)


def box_of(text: str, *files) -> dict:
    return {"text": text, "files": list(map(str, files))}


@pytest.mark.parametrize("visitor", ["a visitor who asked and looked"], indirect=True)
@pytest.mark.parametrize(
    ("text", "names", "question", "pictures"),
    [
        ("", [], "what is it?", 1),  # the last question again
        ("and now?", [], "and now?", 1),
        ("and this?", ["a.png"], "and this?", 2),
    ],
)
def test_what_is_compared_is_what_would_be_asked(visitor, folder, comparing, text, names, question, pictures):
    before = visitor.state()
    session, shown = comparing.start(box_of(text, *(folder / name for name in names)), visitor.visit, 4, 2)
    assert session is visitor.visit
    assert (session.comparison.text, len(session.comparison.images)) == (question, pictures)
    for number in range(4):
        assert shown.count("First token after") == number
        shown = comparing.step(session, 2)
    assert shown.count("First token after") == 4
    assert comparing.redraw(session, 0) != shown
    assert visitor.state() == before


@pytest.mark.parametrize("visitor", ["a new visitor"], indirect=True)
@pytest.mark.parametrize(
    ("text", "names", "complaint"),
    [
        ("", [], "Ask something"),
        ("", ["a.png"], "Ask something"),
        ("why?", [], "Add a picture"),
        ("why?", ["broken.png"], "broken.png cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_toast(
    visitor, folder, comparing, toasts, text, names, complaint
):
    message = box_of(text, *(folder / name for name in names))
    assert comparing.start(message, visitor.visit, 4, 2) == (gradio.skip(), gradio.skip())
    assert comparing.step(visitor.visit, 2) == comparing.redraw(visitor.visit, 2) == gradio.skip()
    (toast,) = toasts
    assert complaint in toast


@pytest.mark.parametrize("visitor", ["a visitor who asked and looked"], indirect=True)
def test_a_failure_of_the_model_ends_a_comparison(visitor, comparing, toasts, monkeypatch, capfd):
    from llava.serve.page_session import BUG

    session, _ = comparing.start(box_of(""), visitor.visit, 4, 2)
    comparing.step(session, 2)
    monkeypatch.setattr(session.comparison.chat, "attention", lambda number: 1 / 0)
    comparing.step(session, 2)
    assert comparing.step(session, 2).count("Stopped.") == 2
    assert toasts == [BUG]
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("visitor", ["a visitor who asked and looked"], indirect=True)
def test_stop_and_a_new_conversation_end_a_comparison(visitor, comparing):
    from llava.serve.page_session import stop

    session, _ = comparing.start(box_of(""), visitor.visit, 4, 2)
    stop(session)
    assert comparing.step(session, 2).count("Stopped.") == 4
    session, _ = comparing.start(box_of(""), visitor.visit, 4, 2)
    visitor.page.reset(session)
    assert comparing.step(session, 2) == ""


@pytest.fixture
def links(chat, tmp_path):
    from llava.serve.conversations import Conversations
    from llava.serve.page_links import Links

    return Links(chat, Conversations(tmp_path, days=30))


def opened(links, **query):
    """What the page shows when its address has the query."""
    return links.restore(SimpleNamespace(query_params=query))


@pytest.mark.parametrize("visitor", ["a visitor who asked and looked"], indirect=True)
def test_a_link_leads_to_the_conversation_as_it_was(visitor, links, chat):
    query = links.save(visitor.visit)["value"]
    assert links.save(visitor.visit)["value"] == query  # nothing has changed
    visitor.ask("and now?")
    later = links.save(visitor.visit)["value"]
    assert later != query
    for address, num_turns in ((query, 1), (later, 2)):
        shown, session, _, _ = opened(links, c=address.removeprefix("?c="))
        assert session.chat.turns == visitor.visit.chat.turns[:num_turns]
        assert [message["role"] for message in shown] == ["user", "user", "assistant", "user", "assistant"][
            : 1 + 2 * num_turns
        ]
        assert shown[-1]["content"] == session.chat.turns[-1].answer
        with Image.open(shown[0]["content"]["path"]) as picture:
            assert picture.size == (60, 40)
        words, *_ = visitor.page.words(session)
        assert words
        assert links.save(session)["value"] == address


def test_a_link_that_cannot_be_made_or_followed_says_why_and_leaves_the_page_alone(links, toasts):
    assert opened(links) == (gradio.skip(),) * 4
    assert toasts == []
    assert links.save(None) == gradio.update(value="", visible=False)
    assert opened(links, c="../../etc/passwd") == (gradio.skip(),) * 4
    first, second = toasts
    assert "Ask a question first" in first
    assert "not stored here" in second


@pytest.mark.parametrize("with_links", [True, False])
def test_links_can_be_switched_off(chat, tmp_path, with_links):
    from llava.serve.conversations import Conversations

    page = web.build(chat, conversations=Conversations(tmp_path, days=30) if with_links else None)
    (button,) = [block for block in page.blocks.values() if getattr(block, "value", None) == "Copy link"]
    assert button.visible is with_links
    assert web.parse_args(["--model-path", "model", "--no-links"]).no_links


def test_where_the_whole_answer_looked_at_any_layer(world, client):
    ask(client, "what is it?", world[0] / "a.png", world[0] / "a.png")
    words, pictures, line = client.predict(layer=0, api_name="/look_at_all")
    assert len(pictures["value"] if isinstance(pictures, dict) else pictures) == 2
    assert line.startswith("The whole answer, layer 0: ")
    assert max(word["class_or_confidence"] for word in words) == 1
    _, _, other = client.predict(layer=2, api_name="/at_layer")
    assert other.startswith("The whole answer, layer 2: ")


def test_the_examples_are_pictures_with_questions():
    (shape, *_), others = examples.questions()[0], examples.questions()[1:]
    assert shape["text"] == "what shape is in the image?"
    assert len(others) >= 2
    for (message,) in [[shape], *others]:
        with Image.open(message["files"][0]) as picture:
            assert picture.size == (examples.SIDE, examples.SIDE)
            assert len(picture.getcolors(examples.SIDE**2)) > 1
