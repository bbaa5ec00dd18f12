"""LLaVA's serving commands that are gone: each says what replaces it."""

import sys

API = "python -m llava.serve.api --model-path MODEL"
REPLACED = {
    "controller": f"one process serves an OpenAI-style API, without a controller: {API}",
    "model_worker": f"one process serves an OpenAI-style API, without workers: {API}",
    "sglang_worker": f"one process serves an OpenAI-style API, without workers: {API}",
    "gradio_web_server": "the web page loads the model itself: python -m llava.serve.web --model-path MODEL",
}


def refuse(command: str) -> int:
    """Print what replaces llava.serve.`command`; gives the exit status of a wrong command line."""
    print(f"llava.serve.{command} is gone; {REPLACED[command]}", file=sys.stderr)
    return 2
