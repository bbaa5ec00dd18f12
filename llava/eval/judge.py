"""A judging model at an OpenAI-compatible endpoint. Replies are kept, so that none is paid for twice."""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from llava.errors import UserError
from llava.eval.json_files import GrowingFile, without_surrogates
from llava.progress import is_first_process

ATTEMPTS = 5
TIMEOUT = 120  # seconds per request
ROW_START = b'{"key"'  # every line of the file of replies starts with it
ROW = {"key": str, "reply": str}


class Judge:
    """A judging model; call it with a prompt, and perhaps a system text, to get its reply.

    Args:
        url: the endpoint's base, such as http://localhost:8000/v1.
        model: the name of the model at the endpoint.
        key_env: environment variable that holds the API key; may be unset for a server of one's own.
        memory: JSON-lines file of all replies so far; new ones are appended.
        pause: seconds before the second attempt, doubled for each further one.
    Raises:
        UserError: if a line of `memory` is damaged.
    """

    def __init__(self, url: str, model: str, key_env: str, memory: Path, pause: float = 2.0):
        self.url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self.headers = {"Content-Type": "application/json"}
        if key := os.environ.get(key_env):
            self.headers["Authorization"] = f"Bearer {key}"
        self.memory = memory
        self.pause = pause
        otherwise = "delete the file, and the judge is asked everything again"
        kept = GrowingFile(memory, "a file of a judge's replies", ROW_START, otherwise)
        self.replies = {row["key"]: row["reply"] for _, row in kept.rows(ROW)}
        kept.cut()  # removes what a kill or a power cut left after the last complete line
        if kept.note and is_first_process():
            print(kept.note, flush=True)

    def __call__(self, prompt: str, system: str = "") -> str:
        """Return the reply, at temperature 0. Raises UserError if the endpoint refuses or does not reply."""
        key = hashlib.sha256(f"{self.model}\n{system}\n{prompt}".encode()).hexdigest()
        if key not in self.replies:
            self.replies[key] = self._ask(prompt, system)
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            with self.memory.open("a", encoding="utf-8") as file:
                row = {"key": key, "prompt": prompt, "reply": self.replies[key]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return self.replies[key]

    def _ask(self, prompt: str, system: str) -> str:
        messages = [{"role": "system", "content": system}] * bool(system)
        messages += [{"role": "user", "content": prompt}]
        body = {"model": self.model, "temperature": 0, "messages": messages}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self.headers)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                    reply = json.load(response)["choices"][0]["message"]["content"]
                if isinstance(reply, str):
                    return without_surrogates(reply)
                problem = f"its content is {reply!r}, expected a text"
            except urllib.error.HTTPError as error:
                problem = f"{error} {error.read(500).decode(errors='replace')}"
                if error.code != 429 and error.code < 500:  # asking again would not help
                    break
            except (OSError, LookupError, TypeError, json.JSONDecodeError) as error:
                problem = repr(error)
        raise UserError(f"--judge-url {self.url}: no reply from {self.model}: {problem}")
