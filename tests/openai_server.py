"""A server of another project, in its own process, with OpenAI's chat completions API."""

import io
import json
import os
import subprocess
import time
import urllib.error
import urllib.request

from pictures import data_url

QUESTION = "What is shown in the image?"
LENGTH = 8  # tokens of an answer
PATIENCE = 600  # seconds, after which a server counts as hanging


def content_of(image) -> list[dict]:
    """A message with a question about an image."""
    written = io.BytesIO()
    image.save(written, "PNG")
    url = data_url(written.getvalue())
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]


class Server:
    """A command that serves a model named "tiny" at `port`, until the `with` block ends."""

    def __init__(self, command: list[str], port: int, log, **environment: str):
        self.command, self.port, self.log, self.environment = command, port, log, environment

    def __enter__(self) -> "Server":
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, env={**os.environ, **self.environment}
            )
        deadline = time.monotonic() + PATIENCE
        while not self.is_up():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)

    def is_up(self) -> bool:
        """Whether the server lists its model."""
        try:
            address = f"http://127.0.0.1:{self.port}/v1/models"
            with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
                return bool(json.load(answer)["data"])
        except OSError:
            return False

    def ask(self, image, budget: object) -> tuple[int, dict]:
        """Returns status and body of an answer; `budget` is a scale factor or None."""
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content_of(image)}],
            "max_tokens": LENGTH,
            "min_tokens": LENGTH,
            "temperature": 0,
            "return_token_ids": True,
        }
        if budget is not None:
            body["mm_processor_kwargs"] = {"scale_factor": budget}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
