"""LLaVA's serving commands that no longer exist: each says what replaces it."""

import sys
from dataclasses import dataclass

API = "python -m llava.serve.api --model-path MODEL"
WEB = "python -m llava.serve.web --model-path MODEL"


@dataclass(frozen=True)
class Gone:
    """A command that says what replaces it, and does nothing else."""

    module: str
    replacement: str

    def main(self, argv: list[str] | None = None) -> int:
        """Return the exit status of a wrong command line, whatever the flags are."""
        print(f"{self.module} no longer exists; {self.replacement}", file=sys.stderr)
        return 2


COMMANDS = (
    Gone("llava.serve.controller", f"one process serves an OpenAI-style API, without a controller: {API}"),
    Gone("llava.serve.model_worker", f"one process serves an OpenAI-style API, without workers: {API}"),
    Gone("llava.serve.sglang_worker", f"one process serves an OpenAI-style API, without workers: {API}"),
    Gone("llava.serve.gradio_web_server", f"the web page loads the model itself: {WEB}"),
)
