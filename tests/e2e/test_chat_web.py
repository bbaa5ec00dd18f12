"""The web page over a tiny model, through gradio's own client."""

import subprocess
import sys
import time
import urllib.request

import pytest
import tiny
from PIL import Image

from llava.serve import examples, web

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

SETTINGS = {"num_tokens": 9, "temperature": 0, "top_p": 1, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a picture, and the page's address."""
    from llava.serve.chat import open_chat

    folder = tmp_path_factory.mktemp("web")
    Image.new("RGB", (60, 40), "red").save(folder / "a.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    page = web.build(open_chat(str(tiny.save_llava(folder / "model")), device="cpu"))
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


def test_stop_ends_the_answer(world, client):
    settings = {**SETTINGS, "max_new_tokens": 900}
    job = client.submit(message("what is it?", world[0] / "a.png"), api_name="/ask", **settings)
    while not job.outputs():
        assert not job.done()
        time.sleep(0.01)
    client.predict(api_name="/stop")
    job.result(timeout=60)
    new_tokens = int(job.outputs()[-1][2].partition(" s, ")[2].split(" tokens")[0])
    assert new_tokens < 900


def test_visitors_have_conversations_of_their_own(world, client):
    ask(client, "what is it?", world[0] / "a.png")
    other = gradio_client.Client(world[1], verbose=False)
    _, timing = ask(other, "what is it?")
    assert timing.startswith("0 visual of")


@pytest.mark.parametrize(
    ("text", "file", "complaint"),
    [
        ("", "a.png", "Ask something"),
        ("why?", "broken.png", "cannot be read"),
        ("<image> or <image>?", "a.png", "2 <image> for 1 image"),
    ],
)
def test_what_is_wrong_is_said_on_the_page_and_leaves_no_trace(world, client, text, file, complaint):
    with pytest.raises(gradio_client.exceptions.AppError, match=complaint):
        ask(client, text, world[0] / file)
    _, timing = ask(client, "why?")
    assert timing.startswith("0 visual of")


def test_the_page_listens_to_this_machine_alone_unless_told():
    args = web.parse_args(["--model-path", "model"])
    assert (args.host, args.share) == ("127.0.0.1", False)


def test_the_command_line_is_parsed_without_heavy_imports(capsys):
    with pytest.raises(SystemExit, match="0"):
        web.main(["--help"])
    assert "--share" in capsys.readouterr().out
    code = "import sys, llava.serve.web\n"
    code += "print(sys.modules.keys() & {'torch', 'transformers', 'PIL', 'gradio'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_visitor_costs_no_copy_of_the_model(world, monkeypatch):
    import torch

    copies = []
    monkeypatch.setattr(
        torch.nn.Module, "__deepcopy__", lambda self, memo: copies.append(self), raising=False
    )
    with urllib.request.urlopen(world[1]) as page:
        assert page.status == 200
    assert copies == []


def test_where_the_whole_answer_looked_at_any_layer(world, client):
    ask(client, "what is it?", world[0] / "a.png", world[0] / "a.png")
    words, pictures, line = client.predict(layer=0, api_name="/look_at_all")
    assert len(pictures["value"] if isinstance(pictures, dict) else pictures) == 2
    assert line.startswith("The whole answer, layer 0: ")
    assert max(word["class_or_confidence"] for word in words) == 1
    _, _, other = client.predict(layer=2, api_name="/at_layer")
    assert other.startswith("The whole answer, layer 2: ")


def test_a_look_ahead_of_any_answer_is_refused(client):
    with pytest.raises(gradio_client.exceptions.AppError, match="Ask first"):
        client.predict(layer=0, api_name="/look_at_all")


def test_the_examples_are_pictures_with_questions():
    (shape, *_), others = examples.questions()[0], examples.questions()[1:]
    assert shape["text"] == "what shape is in the image?"
    assert len(others) >= 2
    for (message,) in [[shape], *others]:
        with Image.open(message["files"][0]) as picture:
            assert picture.size == (examples.SIDE, examples.SIDE)
            assert len(picture.getcolors(examples.SIDE**2)) > 1
