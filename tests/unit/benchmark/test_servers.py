"""python -m llava.benchmark servers: its requests to each server, and its report on the answers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from messages import assert_names
from PIL import Image

from llava.benchmark.__main__ import main
from llava.benchmark.servers_report import draw
from llava.eval.records import write_jsonl
from llava.hf import VisualPrismImageProcessor

TEXTS = {"what color?": "red", "what shape?": "circle", "how many?": "2"}


class Chat(BaseHTTPRequestHandler):
    """A server of chat completions that answers with TEXTS, and keeps the bodies of its requests."""

    def log_message(self, *args):
        pass

    def reply(self, kind: str, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self):
        model = {"id": "tiny", "object": "model", "created": 0, "owned_by": self.server.owner}
        self.reply("application/json", json.dumps({"object": "list", "data": [model]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        base = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}
        text = TEXTS[body["messages"][0]["content"][-1]["text"]]
        events = [
            {**base, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
            for piece in ("", text[:1], text[1:])
        ]
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        events.append({**base, "choices": [], "usage": usage})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.reply("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))


@pytest.fixture
def servers():
    """Servers, by the owner of their models."""
    made = {}
    for owner in ("vllm", "local"):
        server = made[owner] = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
        server.owner, server.bodies = owner, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    for server in made.values():
        server.shutdown()
        server.server_close()


@pytest.fixture
def flags(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    rows = [{"question_id": i, "image": "red.png", "text": text} for i, text in enumerate(TEXTS)]
    write_jsonl(tmp_path / "questions.jsonl", rows)
    answers = [
        {"question_id": 2, "text": "3"},
        {"question_id": 0, "text": "red"},
        {"question_id": 1, "text": "circle"},
    ]
    write_jsonl(tmp_path / "answers.jsonl", answers)
    return [
        *("servers", "--question_file", str(tmp_path / "questions.jsonl"), "--image_folder", str(tmp_path)),
        *("--answers_file", str(tmp_path / "answers.jsonl"), "--output_dir", str(tmp_path / "out")),
        *("--repeats", "2", "--clients", "2"),
    ]


def named(servers) -> list[str]:
    return ["--servers", *(f"{name}=http://127.0.0.1:{each.server_port}" for name, each in servers.items())]


def test_each_server_answers_all_questions_at_each_s_in_its_own_words(servers, flags, tmp_path, capsys):
    assert main([*flags, *named(servers), "--scale_factor", "2", "3"]) == 0
    for owner, server in servers.items():
        assert len(server.bodies) == 2 * 3 * len(TEXTS)  # the values of s, and the rounds with the first one
        budgets = [
            body["mm_processor_kwargs"]["scale_factor"] if owner == "vllm" else body["scale_factor"]
            for body in server.bodies
        ]
        assert sorted(budgets) == [2] * 9 + [3] * 9
        assert all(body["temperature"] == 0 and body["model"] == "tiny" for body in server.bodies)
    printed = capsys.readouterr().out
    assert printed.count("question 2: '2'; in the file '3'") == 4
    results = json.loads((tmp_path / "out" / "servers.json").read_text())["results"]
    assert [row["equal"] for row in results] == ["2 of 3"] * 4
    assert all(len(row["rounds"]) == 2 for row in results)
    assert all(figures["first_token_ms"] > 0 for row in results for figures in row["rounds"])


@pytest.fixture
def exported(tmp_path):
    """A processor whose model has a 4x4 grid."""
    folder = tmp_path / "exported"
    VisualPrismImageProcessor(tokens_per_view={1: 16, 2: 4, 4: 1}, scale_factor=2).save_pretrained(folder)
    return str(folder)


def test_a_picture_shows_the_first_server_s_budgets(servers, flags, exported, tmp_path, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr("llava.benchmark.servers.draw", lambda *args: kept.append(args) or draw(*args))
    flags += ["--exported", exported, "--picture", str(tmp_path / "figures/a.png")]
    assert main([*flags, *named(servers), "--scale_factor", "1", "2"]) == 0
    ((_, image_file, question, budgets),) = kept
    assert (image_file.name, question) == ("red.png", "what color?")
    found = [(budget.tokens, budget.scale_factor, budget.answer) for budget in budgets]
    assert found == [(16, 1, "red"), (4, 2, "red")]
    results = json.loads((tmp_path / "out" / "servers.json").read_text())["results"]
    assert [row["visual_tokens"] for row in results] == [16, 16, 4, 4]
    assert "| vllm | 1 | 16 |" in capsys.readouterr().out
    with Image.open(tmp_path / "figures/a.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 2


def test_a_picture_needs_budgets_that_the_model_has(servers, flags, exported, tmp_path, capsys):
    flags += named(servers)
    assert main([*flags, "--picture", "a.png"]) == 1
    assert_names(capsys.readouterr().err, "--picture", "--exported")
    assert main([*flags, "--exported", exported, "--scale_factor", "3"]) == 1
    assert_names(capsys.readouterr().err, "scale_factor", "1, 2, 4", "3")
    assert main([*flags, "--exported", str(tmp_path / "nothing")]) == 1
    assert_names(capsys.readouterr().err, "--exported", "nothing")
    assert not any(server.bodies for server in servers.values())


def test_what_is_missing_is_said(servers, flags, tmp_path, capsys):
    assert main([*flags, "--servers", "127.0.0.1:1"]) == 1
    assert_names(capsys.readouterr().err, "--servers", "NAME=URL", "127.0.0.1:1")
    assert main([*flags, "--servers", "x=http://127.0.0.1:1"]) == 1
    assert_names(capsys.readouterr().err, "--servers x=http://127.0.0.1:1")
    write_jsonl(tmp_path / "answers.jsonl", [{"question_id": 0, "text": "red"}])
    assert main([*flags, *named(servers)]) == 1
    assert_names(capsys.readouterr().err, "answers.jsonl", "question 1")
