"""Answer a question file with a model, in batches, into a JSON-lines file.

Killed anywhere, the same command goes on where it stopped; when nothing is left to do no model is loaded.
"""

import argparse
import json
import sys
from pathlib import Path

from llava.conversation import DEFAULT_TEMPLATE, template_named
from llava.eval import TOKEN_BUDGET
from llava.eval.records import AnswerFile, get_chunk, load_questions, model_fingerprint


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.model_vqa_loader", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model-path", required=True, help="model folder (or a projector/LoRA folder beside --model-base)")
    add("--model-base", help="language model folder that --model-path completes")
    add("--image-folder", default="", help="where the questions' image paths start")
    add("--question-file", required=True, help='JSON lines {"question_id", "image", "text"}')
    add("--answers-file", required=True, help="JSON lines, continued if it exists")
    add(
        "--conv-mode",
        help=f"template; default: config.json's conv_version, else {DEFAULT_TEMPLATE}",
    )
    add("--num-chunks", type=int, default=1, help="parts the questions are split into, one a process")
    add("--chunk-idx", type=int, default=0, help="which part this process answers, from 0")
    add("--temperature", type=float, default=0.0, help="0: greedy")
    add("--top_p", type=float, help="nucleus of this probability; only with a temperature")
    add("--num_beams", type=int, default=1, help="beams")
    add("--max_new_tokens", type=int, default=128, help="longest answer, tokens")
    add("--batch_size", type=int, help="questions at a time; default: as many as --token_budget holds")
    add(
        "--token_budget",
        type=int,
        default=TOKEN_BUDGET,
        help="tokens of a batch: prompts padded to the longest, visual tokens and --max_new_tokens included "
        f"(default {TOKEN_BUDGET}: 8 GB of keys and values for a 7B model in half precision)",
    )
    add("--image_aspect_ratio", help="override the model's own: square, pad, slice or anyres")
    add("--scale_factor", type=int, help="override the model's own compression side")
    add(
        "--on_bad_record",
        choices=("fail", "skip"),
        default="fail",
        help="skip: leave out, count and list at the end",
    )
    args = parser.parse_args(argv)
    for name in ("batch_size", "token_budget"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def read_config(model_path: str) -> dict:
    """config.json of a model folder.

    Raises:
        ValueError: if there is none; names the folder.
    """
    path = Path(model_path) / "config.json"
    if not path.is_file():
        raise ValueError(f"--model-path {model_path}: no config.json there; pass a model folder.")
    return json.loads(path.read_text(encoding="utf-8"))


def answer_settings(args: argparse.Namespace, config: dict) -> dict:
    """Everything that changes an answer, as kept in each row's metadata."""
    sampled = args.temperature > 0
    return {
        "conv_mode": args.conv_mode or config.get("conv_version") or DEFAULT_TEMPLATE,
        "temperature": args.temperature,
        "top_p": args.top_p if sampled else None,
        "num_beams": args.num_beams,
        "max_new_tokens": args.max_new_tokens,
        "image_aspect_ratio": args.image_aspect_ratio or config.get("image_aspect_ratio"),
        "scale_factor": args.scale_factor or config.get("scale_factor"),
        "weights": model_fingerprint(args.model_path),
        "base_weights": model_fingerprint(args.model_base) if args.model_base else None,
    }


def evaluate(args: argparse.Namespace) -> list[tuple[dict, str]]:
    """Answer all questions of this chunk that have no answer yet; complete the answers file.

    Returns:
        (question, reason) of those left out, always empty under --on_bad_record fail.
    Raises:
        ValueError: for what the user can mend; says how. The answers so far stay in the file.
    """
    questions = get_chunk(load_questions(args.question_file), args.num_chunks, args.chunk_idx)
    settings = answer_settings(args, read_config(args.model_path))
    model_id = Path(args.model_path).resolve().name
    answers = AnswerFile(args.answers_file, questions, model_id, settings)
    remaining = [question for question in questions if question["question_id"] not in answers.answered]
    print(f"{args.answers_file}: {len(answers.answered)} answers kept, {len(remaining)} to go", flush=True)
    skipped = []
    if remaining:
        skip = args.on_bad_record == "skip"
        if not skip:
            _check_images_exist(remaining, Path(args.image_folder))
        _answer(args, settings, remaining, answers, skipped if skip else None)
    answers.finish()
    return skipped


def _check_images_exist(questions: list[dict], folder: Path) -> None:
    missing = [q for q in questions if q.get("image") and not (folder / q["image"]).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} question(s) name an image that does not exist, the first being question "
            f"{missing[0]['question_id']}: {folder / missing[0]['image']}; check --image-folder, or pass "
            "--on_bad_record skip."
        )


def _answer(args, settings: dict, questions: list[dict], answers: AnswerFile, skipped: list | None) -> None:
    # here, so that --help and a finished run need no torch
    from tqdm import tqdm

    from llava.eval.generation import Decoding, answer_questions
    from llava.mm_utils import get_model_name_from_path
    from llava.model.builder import load_pretrained_model

    decoding = Decoding(args.temperature, args.top_p, args.num_beams, args.max_new_tokens)
    template_named(settings["conv_mode"])  # a wrong name should not wait for the weights
    tokenizer, model, image_processor, _ = load_pretrained_model(
        args.model_path, args.model_base, get_model_name_from_path(args.model_path)
    )
    override_settings(model, args.image_aspect_ratio, args.scale_factor)
    done = len(answers.answered)
    with tqdm(total=done + len(questions), initial=done, unit="q", desc="answers", smoothing=0.05) as bar:
        for question, text in answer_questions(
            model,
            tokenizer,
            image_processor,
            questions,
            image_folder=args.image_folder,
            conv_mode=settings["conv_mode"],
            decoding=decoding,
            batch_size=args.batch_size,
            token_budget=args.token_budget,
            skipped=skipped,
        ):
            answers.append(question, text)
            bar.update()


def override_settings(model, image_aspect_ratio: str | None, scale_factor: int | None) -> None:
    """Set what the command line asks for on a loaded model, whose modules then follow.

    Raises:
        ValueError: if its projector has no scale factor, or it does not divide the grid.
    """
    if image_aspect_ratio is not None:
        model.config.image_aspect_ratio = image_aspect_ratio
    if scale_factor is not None:
        model.tokens_per_image(scale_factor)  # refuses what the projector or the grid cannot give
        model.config.scale_factor = scale_factor


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        skipped = evaluate(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for question, reason in skipped:
        print(f"skipped question {question['question_id']}: {reason}")
    if skipped:
        print(f"{len(skipped)} question(s) skipped")
    print(f"answers: {args.answers_file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
