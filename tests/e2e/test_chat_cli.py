"""The chat in a terminal, through its standard input; and the commands that this and others replace."""

import io
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny
from messages import assert_names
from PIL import Image

from llava.serve import cli

GREEDY = ["--temperature", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model and two pictures."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_llava(folder / "model")
    Image.new("RGB", (60, 40), "red").save(folder / "a.png")
    Image.new("RGB", (40, 90), "blue").save(folder / "b c.png")
    return folder


@pytest.fixture
def address(world):
    handler = partial(SimpleHTTPRequestHandler, directory=str(world))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def start(world, *argv: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "llava.serve.cli", "--model-path", str(world / "model"), *argv]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    # a background job of a shell ignores Ctrl-C, and its children do too
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, text=True, preexec_fn=restore, **pipes)


@pytest.fixture
def talk(world, monkeypatch, capsys):
    """Run a conversation with flags and the bytes of standard input; returns output and errors as texts."""

    def talk(*argv: str, lines: bytes, errors: str = "strict") -> tuple[str, str]:
        given = io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8", errors=errors)
        monkeypatch.setattr(sys, "stdin", given)
        assert cli.main(["--model-path", str(world / "model"), *GREEDY, *argv]) == 0
        return capsys.readouterr()

    return talk


def after_each_prompt(out: str) -> list[str]:
    return [part.strip() for part in out.split("USER: ")[1:]]


def test_a_conversation_with_pictures_budgets_and_a_new_start(world, address, talk):
    short = ["--max-new-tokens", "12"]
    lines = ["what is it?", "and now?", "/tokens 4", "and now?", "/tokens 64", "/reset", "what is it?"]
    lines += [
        "/reset",
        f"/image {world}/b c.png",
        f"/image {world}/a.png",
        "what is it?",
        "/nonsense",
        "/help",
    ]
    lines += ["/image nowhere.png", f"/image {address}/a.png", "", "/tokens few", "/image"]
    lines += [f"/image '{world}/b c.png'", "/exit", "never read"]
    given = "".join(f"{line}\n" for line in lines).encode()
    out, err = talk("--image-file", f"{address}/a.png", *short, "--debug", lines=given)
    said = after_each_prompt(out)
    first, second, tokens, third, refused, reset, blind, _, one, two, both, wrong, listed, *rest = said
    missing, not_fetched, empty, few, which, quoted, left = rest
    assert all(answer.startswith("ASSISTANT: ") for answer in (first, second, third, blind, both))
    assert len({first, blind, both}) == 3
    assert tokens == "(4 visual tokens for each view of a picture)"
    assert_names(refused, "error: ", "64 visual tokens", "36, 9, 4, 1")
    assert reset == "(a new conversation)"
    assert one.startswith("(1 picture(s)")
    assert two.startswith("(2 picture(s)")
    assert wrong.startswith("error: /nonsense is not a command")
    assert "/tokens N" in listed
    assert missing.startswith("error: nowhere.png does not exist")
    assert_names(not_fetched, "error: /image", "--image-file")
    assert (empty, left) == ("", "")
    assert_names(few, "error: /tokens", "'few'")
    assert_names(which, "error: /image", "path")
    assert quoted.startswith("(1 picture(s)")
    timings = [line for line in err.splitlines() if "visual of" in line]
    assert [line.split(" visual")[0] for line in timings] == ["9", "9", "4", "0", "8"]


def test_bytes_that_are_no_utf_8_become_a_mark_and_image_is_letters_without_pictures(talk):
    """Both where Python fails at such bytes, and where it makes surrogates of them; also in a path."""
    lines = b"caf\xe9 \xff?\nan <image>?\n/image caf\xe9.png\nand now?\n"
    for errors in ("strict", "surrogateescape"):
        out, err = talk("--max-new-tokens", "3", "--debug", lines=lines, errors=errors)
        assert out.count("ASSISTANT: ") == 3
        assert "error: caf\ufffd.png does not exist" in out
        assert "USER: caf\ufffd \ufffd? ASSISTANT:" in err
        assert "USER: an <image>? ASSISTANT:" in err
        assert "Traceback" not in err


def test_several_pictures_on_the_command_line_are_shown_with_the_first_question(world, talk):
    images = ["--image-file", f"{world}/a.png", f"{world}/b c.png"]
    out, err = talk(*images, "--max-new-tokens", "2", "--debug", lines=b"why?\n")
    assert len(after_each_prompt(out)) == 2
    assert "<image>\\n<image>\\nwhy?" in err
    assert "18 visual of" in err


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(world):
    chat = start(world, *GREEDY, "--max-new-tokens", "900", "--debug")
    chat.stdin.write("what is it?\n")
    chat.stdin.flush()
    prompt = "USER: ASSISTANT: "
    assert chat.stdout.read(len(prompt) + 3).startswith(
        prompt
    )  # three letters of the answer have been printed
    chat.send_signal(signal.SIGINT)
    out, err = chat.communicate("/help\n", timeout=120)
    assert chat.returncode == 0, err
    assert "(stopped)\nUSER: Between the questions:" in out
    new_tokens = int(err.rpartition(" s, ")[2].split(" tokens")[0])
    assert new_tokens < 900


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--image-file", "nowhere.png"], ("nowhere.png", "does not exist")),
        (["--image-file", "http://127.0.0.1:9/a.png"], ("http://127.0.0.1:9/a.png: ", "fetched")),
        (["--temperature", "-1"], ("--temperature", "-1.0")),
        (["--conv-mode", "esperanto"], ("--conv-mode", "esperanto", "vicuna_v1")),
        (["--device", "typewriter"], ("--device typewriter", "cpu")),
    ],
)
def test_what_is_wrong_is_said_ahead_of_the_conversation(world, flags, parts, capsys):
    assert cli.main(["--model-path", str(world / "model"), *flags]) == 1
    assert_names(capsys.readouterr().err, *parts)


@pytest.mark.parametrize(
    ("command", "replacement"),
    [
        ("controller", "llava.serve.api"),
        ("model_worker", "llava.serve.api"),
        ("sglang_worker", "llava.serve.api"),
        ("gradio_web_server", "llava.serve.web"),
    ],
)
def test_an_old_command_names_what_replaces_it(command, replacement):
    old = [sys.executable, "-m", f"llava.serve.{command}", "--host", "0.0.0.0", "--port", "10000"]
    done = subprocess.run(old, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert_names(done.stderr, f"llava.serve.{command}", f"python -m {replacement} --model-path")
