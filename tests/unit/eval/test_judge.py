"""The client of the judge, with a test server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llava.eval.judge import Judge


@pytest.fixture
def server():
    """An endpoint that sends each status of `statuses` in turn and then replies; it keeps its requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.seen.append((self.path, self.headers["Authorization"], body))
            status = server.statuses.pop(0) if server.statuses else 200
            reply = {"choices": [{"message": {"content": f"score: {len(server.seen)}"}}]}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(reply if status == 200 else {"error": "busy"}).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.statuses = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def judge(server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/v1/"
    return Judge(url, "j", "TEST_JUDGE_KEY", tmp_path / "new" / "judge.jsonl", pause=0.0)


def test_a_judge_is_asked_once_for_a_prompt_even_over_several_runs(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    first = judge(server, tmp_path)
    assert [first("good?"), first("good?"), first("bad?")] == ["score: 1", "score: 1", "score: 2"]
    path, key, body = server.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body == {"model": "j", "temperature": 0, "messages": [{"role": "user", "content": "good?"}]}

    memory = tmp_path / "new" / "judge.jsonl"
    assert "secret" not in memory.read_text()
    memory.write_bytes(memory.read_bytes()[:-9])  # killed while it was writing
    again = judge(server, tmp_path)
    assert [again("good?"), again("bad?")] == ["score: 1", "score: 3"]


def test_a_system_text_is_a_message_of_its_own_and_makes_another_question(server, tmp_path):
    ask = judge(server, tmp_path)
    assert [ask("good?"), ask("good?", "Be fair."), ask("good?", "Be fair.")] == [
        "score: 1",
        "score: 2",
        "score: 2",
    ]
    assert server.seen[1][2]["messages"] == [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": "good?"},
    ]


def test_a_busy_judge_is_asked_again(server, tmp_path):
    server.statuses = [429, 503]
    assert judge(server, tmp_path)("good?") == "score: 3"
    assert server.seen[0][1] is None  # a private server needs no key


def test_a_judge_that_refuses_is_named_with_its_reason(server, tmp_path):
    server.statuses = [401]
    with pytest.raises(ValueError, match=r"--judge-url .* j: HTTP Error 401.*busy"):
        judge(server, tmp_path)("good?")
    assert len(server.seen) == 1
