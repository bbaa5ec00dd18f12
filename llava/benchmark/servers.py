"""Servers of one model side by side: answers a second, the wait for a first token, and their answers.

The servers must be running already; any server with OpenAI's chat completions works. They take turns; a first
round warms up and is not counted. A server whose models are owned by vllm gets s in `mm_processor_kwargs`;
any other, such as our own, gets it in `scale_factor`. vLLM has caches for questions that it has seen before;
its flags --no-enable-prefix-caching and --mm-processor-cache-gb 0 switch them off.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llava.benchmark.servers_report import Budget, compared, draw, shown
from llava.benchmark.timing import add_measure_flags, headline, provenance, publish, take_turns
from llava.errors import UserError
from llava.eval.json_files import read_jsonl
from llava.eval.page import embed_bytes
from llava.eval.records import check_questions

TIMEOUT = 600.0  # seconds for an answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--servers",
        nargs="+",
        required=True,
        metavar="NAME=URL",
        help="servers, for example vllm=http://127.0.0.1:8000",
    )
    add("--question_file", type=Path, required=True, help="JSON lines with question_id, image and text")
    add("--image_folder", type=Path, required=True)
    add(
        "--answers_file",
        type=Path,
        help="answers with which those of the servers are compared",
    )
    add(
        "--scale_factor",
        type=int,
        nargs="+",
        help="values of s, one after another; default: the model's own",
    )
    add("--exported", type=Path, help="the exported folder that is served: names the visual tokens of each s")
    add(
        "--picture",
        type=Path,
        help="a PNG to draw of the first server, with the first question: its answer and the wait at each s; "
        "needs --exported",
    )
    add("--clients", type=int, default=8, help="questions on their way at a time")
    add("--limit", type=int, help="questions; default: all")
    add("--max_new_tokens", type=int, default=8)
    add_measure_flags(parser, "--repeats", "--output_dir", "--docs", repeats=3)
    parser.set_defaults(run=run, name="servers")


@dataclass(frozen=True)
class Server:
    """A server; `name` is its name in the table."""

    name: str
    url: str
    model: str
    takes_mm_kwargs: bool

    def options(self, scale_factor: int | None) -> dict:
        """Return the fields of a request that are not OpenAI's."""
        if scale_factor is None:
            return {}
        own = {"scale_factor": scale_factor}
        return {"mm_processor_kwargs": own} if self.takes_mm_kwargs else own


def server_at(text: str) -> Server:
    """Return the server that NAME=URL names.

    Raises:
        UserError: if the text does not have this form, or no server answers there.
    """
    from openai import OpenAI, OpenAIError

    name, _, url = text.partition("=")
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--servers needs NAME=URL, for example vllm=http://127.0.0.1:8000, got {text!r}.")
    url = url.rstrip("/").removesuffix("/v1") + "/v1"
    try:
        (model, *_) = OpenAI(base_url=url, api_key="none", timeout=TIMEOUT).models.list().data
    except OpenAIError as error:
        raise UserError(f"--servers {text}: {error} Start the server first.") from error
    return Server(name, url, model.id, model.owned_by == "vllm")


@dataclass(frozen=True)
class Answer:
    """An answer's text, its number of tokens, and the seconds from the request to the first token."""

    text: str
    tokens: int
    first: float


async def ask(client, server: Server, row: dict, image: str, options: dict, max_new_tokens: int) -> Answer:
    """Ask one question, with greedy decoding."""
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": row["text"]}]
    start, first, pieces, tokens = time.perf_counter(), None, [], 0
    stream = await client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": content}],
        max_tokens=max_new_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=options,
    )
    async for event in stream:
        if event.usage:
            tokens = event.usage.completion_tokens
        for choice in event.choices:
            if choice.delta.content:
                first = first or time.perf_counter() - start
                pieces.append(choice.delta.content)
    return Answer("".join(pieces).strip(), tokens, first or time.perf_counter() - start)


async def ask_all(
    server: Server, rows: list[dict], images: Sequence[str], options: dict, clients: int, max_new_tokens: int
) -> list[Answer]:
    """Ask all questions, `clients` at a time; return the answers in the order of the questions."""
    from openai import AsyncOpenAI

    places = asyncio.Semaphore(clients)
    async with AsyncOpenAI(base_url=server.url, api_key="none", timeout=TIMEOUT, max_retries=0) as client:

        async def one(row: dict, image: str) -> Answer:
            async with places:
                return await ask(client, server, row, image, options, max_new_tokens)

        return await asyncio.gather(*map(one, rows, images))


def data_url(path: Path) -> str:
    return embed_bytes(path.read_bytes(), "png" if path.suffix.lower() == ".png" else "jpeg")


def figures_of(
    server: Server, scale_factor: int | None, rows: list[dict], images: list[str], args: argparse.Namespace
) -> dict:
    """Run one round of a server at one s and return its figures."""
    start = time.perf_counter()
    options = server.options(scale_factor)
    answers = asyncio.run(ask_all(server, rows, images, options, args.clients, args.max_new_tokens))
    seconds = time.perf_counter() - start
    waits = sorted(answer.first for answer in answers)
    return {
        "answers_a_second": len(answers) / seconds,
        "tokens_a_second": sum(answer.tokens for answer in answers) / seconds,
        "first_token_ms": 1e3 * statistics.median(waits),
        "first_token_p95_ms": 1e3 * waits[int(0.95 * (len(waits) - 1))],
        "texts": [answer.text for answer in answers],
    }


def expected_texts(path: Path, rows: list[dict]) -> list[str]:
    """Return a file's answers in the order of the questions.

    Raises:
        UserError: if a question has no answer; the message names it.
    """
    kept = {row["question_id"]: row["text"] for row in read_jsonl(path)}
    if missing := [row["question_id"] for row in rows if row["question_id"] not in kept]:
        raise UserError(f"--answers_file {path} has no answer to question {missing[0]}.")
    return [kept[row["question_id"]].strip() for row in rows]


def run(args: argparse.Namespace) -> None:
    """Print a table with a row for each server and s, and each answer that differs from --answers_file's."""
    try:
        import openai
    except ModuleNotFoundError as error:
        raise UserError(f"this command needs {error.name}; run pip install -e '.[benchmark]'.") from None
    rows = check_questions(read_jsonl(args.question_file), args.question_file)[: args.limit]
    images = [data_url(args.image_folder / row["image"]) for row in rows]
    expected = expected_texts(args.answers_file, rows) if args.answers_file else None
    servers = [server_at(text) for text in args.servers]
    factors = args.scale_factor or [None]
    if args.picture and not args.exported:
        raise UserError("--picture needs --exported, which names the visual tokens of each s.")
    tokens = visual_tokens(args.exported, factors) if args.exported else {}
    calls: dict[tuple[Server, int | None], Callable[..., dict]] = {
        (server, factor): partial(figures_of, server, factor, rows, images, args)
        for factor in factors
        for server in servers
    }
    try:
        turns = take_turns(calls, args.repeats)
    except openai.OpenAIError as error:
        raise UserError(f"a server failed: {error}") from error
    results = [
        {
            "server": server.name,
            "scale_factor": factor,
            "visual_tokens": tokens.get(factor),
            "rounds": rounds,
            "equal": expected and compared(server.name, rows, rounds[0]["texts"], expected),
        }
        for (server, factor), rounds in turns.items()
    ]
    about = provenance("cpu", "servers with dtypes of their own")
    publish(args, args.name, {"about": about, "results": results}, f"{headline(about)}\n\n{shown(results)}")
    if args.picture:
        of_first = [row for row in results if row["server"] == servers[0].name]
        budgets = [Budget.of(row) for row in of_first]
        draw(args.picture, args.image_folder / rows[0]["image"], rows[0]["text"], budgets)


def visual_tokens(exported: Path, factors: list[int | None]) -> dict[int | None, int]:
    """Map each s to the visual tokens of a view.

    Raises:
        UserError: if the folder was not exported with our processor, or the model does not serve an s.
    """
    from llava.hf import VisualPrismImageProcessor

    try:
        images = VisualPrismImageProcessor.from_pretrained(exported)
    except OSError as error:
        raise UserError(f"--exported {exported}: {error}") from error
    if not images.tokens_per_view:
        raise UserError(f"--exported {exported}: its model has only one number of visual tokens.")
    return {factor: images.num_view_tokens(factor) for factor in factors}
