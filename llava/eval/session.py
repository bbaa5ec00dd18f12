"""A model under one set of flags, and the loop in which it answers; all evaluation commands use it.

Under `accelerate launch` or torchrun, each process answers a part of the batches; all processes need access
to the folder of the answers.
"""

import argparse
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from llava.conversation import DEFAULT_TEMPLATE, template_named
from llava.errors import UserError
from llava.eval.lengths import Length, LengthFile, lengths_of, measure
from llava.eval.records import AnswerFile, images_of, key_of, model_fingerprint
from llava.inference import MODEL, SAMPLING, LoadedModel, check_device, load_by_flags, loading_options
from llava.loading import default_dtype, dtype_flag
from llava.progress import progress_bar
from llava.textfile import absence, shown_name

# The flags that determine which model answers, and how
FLAGS = (*MODEL, *SAMPLING, "--num_beams", "--batch_size", "--token_budget", "--on_bad_record")
PATIENCE = timedelta(days=7)  # how long a finished process waits for the others


def model_folder(name_or_path: str, flag: str = "--model-path") -> Path:
    """Return the folder itself, or fetch the hub repository of that name, as loading does.

    Raises:
        UserError: if there is neither such a folder nor such a repository.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from llava.model.plan import find_folder  # imports torch

    return find_folder(name_or_path, f"{flag} {name_or_path} has no config.json;")


def read_config(model_path: str) -> dict:
    """Return config.json of a model folder or hub repository.

    Raises:
        UserError: if there is none, or it is damaged; names the folder.
    """
    folder = model_folder(model_path)
    if not (folder / "config.json").is_file():  # checked before the next import, which imports torch
        raise UserError(f"--model-path {model_path} has no config.json; give a model folder.")
    from llava.model.plan import look_at

    return look_at(folder).saved


@dataclass(frozen=True)
class Answered:
    """The result of answering a list of questions.

    Attributes:
        rows: {"question_id", "text"} in question order; empty on all processes but the first.
        skipped: (question_id, reason) of questions left out; always empty under --on_bad_record fail.
        num_new: the number of questions that this run answered, over all processes.
        seconds: the time that these took, without loading the model.
        visual_tokens: average sequence positions per image; None if nothing was asked or there is no image.
        settings: the settings that the answers were made with, as in the rows' metadata.
    """

    rows: list[dict]
    skipped: list[tuple]
    num_new: int
    seconds: float
    visual_tokens: float | None
    settings: dict


class Session:
    """A model under one set of flags; it is loaded only if a question has no answer yet.

    Args:
        args: the values of FLAGS.
    Raises:
        UserError: if the folder holds no model, the template is unknown, or the settings are impossible.
    """

    def __init__(self, args: argparse.Namespace):
        config = read_config(args.model_path)
        sampled = args.temperature > 0
        self.args = args
        self.model_id = Path(args.model_path).resolve().name
        # everything that changes an answer by more than rounding, as kept in each row's metadata; a compiler
        # and the batch size are left out, because they change only the order of sums
        self.settings = {
            "conv_mode": args.conv_mode or config.get("conv_version") or DEFAULT_TEMPLATE,
            "temperature": args.temperature,
            "top_p": args.top_p if sampled else None,
            "num_beams": args.num_beams,
            "image_aspect_ratio": args.image_aspect_ratio or config.get("image_aspect_ratio"),
            "scale_factor": args.scale_factor or config.get("scale_factor"),
            "weights": model_fingerprint(model_folder(args.model_path)),
            "base_weights": (
                model_fingerprint(model_folder(args.model_base, "--model-base")) if args.model_base else None
            ),
        }
        self.template = template_named(self.settings["conv_mode"])
        # imported here, so that --help and a wrong flag need no torch
        import torch
        from accelerate import PartialState

        loading = loading_options(args)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if args.device:
            if several:
                raise UserError("--device: a launcher gives each process its own device; leave the flag out.")
            check_device(args.device)
        # accelerate recognises several processes on CPUs only with cpu=True
        self.processes = PartialState(cpu=several and not torch.cuda.is_available(), timeout=PATIENCE)
        self.device = torch.device(args.device) if args.device else self.processes.device
        self.settings |= {
            "bits": next((bits for bits in (4, 8) if loading[f"load_{bits}bit"]), None),
            "attn_implementation": loading["attn_implementation"],  # some implementations compute in 8 bits
            # the dtype of the computation, whether a flag, the config or the device determined it
            "dtype": dtype_flag(loading["torch_dtype"] or default_dtype(config, self.device)),
        }

    def devices(self) -> dict[str, str]:
        """Describe the hardware of this run, for a report."""
        import torch

        device = self.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        compiled = {"compiled": "vision and decoding"} if self.args.compile else {}
        return {"device": name, "processes": str(self.processes.num_processes), **compiled}

    @cached_property
    def _loaded(self) -> LoadedModel:
        chosen = {"device": str(self.device), "dtype": self.settings["dtype"]}
        return load_by_flags(argparse.Namespace(**{**vars(self.args), **chosen}))

    def answer(
        self, questions: list[dict], path: str | Path, image_folder: str | Path, max_new_tokens: int
    ) -> Answered:
        """Answer the questions that have no answer yet in an answers file, and complete the file.

        The batches depend only on the questions and the flags, not on the number of processes or on where an
        earlier run stopped. Therefore the answers do not depend on these either.

        Args:
            questions: rows {"question_id", "text", "image"?}; the text is asked unchanged.
            path: the answers file; continued if it exists.
            image_folder: where relative image paths start.
            max_new_tokens: maximum answer length in tokens.
        Raises:
            UserError: for a problem that the user can fix; says how. The answers so far stay in the file.
        """
        from accelerate.utils import gather_object

        from llava.decoding import Decoding

        args, state = self.args, self.processes
        decoding = Decoding(args.temperature, args.top_p, args.num_beams, max_new_tokens, args.compile)
        settings = self.settings | {"max_new_tokens": max_new_tokens}
        answers = AnswerFile(path, questions, self.model_id, settings, state.process_index)
        kept = set(answers.answered)
        refusals = _Refusals(kept, skip=args.on_bad_record == "skip")
        if state.is_main_process:
            lines = [
                *answers.notes,
                f"{path}: {len(kept)} answers kept, {len(questions) - len(kept)} questions left",
            ]
            print(*lines, sep="\n", flush=True)
        num_questions = len(questions)
        questions = refusals.without_image(questions, Path(image_folder))
        state.wait_for_everyone()  # no process writes before all have read the files
        seconds, visual_tokens = 0.0, None
        if any(key_of(question) not in kept for question in questions):
            _ = self._loaded  # loads the model, which is not timed
            start = time.perf_counter()
            visual_tokens = self._ask(questions, answers, kept, Path(image_folder), decoding, refusals)
            state.wait_for_everyone()
            seconds = time.perf_counter() - start
        skipped = dict(gather_object(list(refusals.skipped.items())))
        num_new = sum(gather_object([len(answers.answered) - len(kept)]))
        if state.is_main_process:
            answers.finish()
            if len(answers.answered) == num_questions:
                lengths_of(answers.path).unlink(missing_ok=True)
        state.wait_for_everyone()
        return Answered(
            rows=answers.rows() if state.is_main_process else [],
            skipped=[(question_id, reason) for (question_id, _), reason in skipped.items()],
            num_new=num_new,
            seconds=seconds,
            visual_tokens=visual_tokens,
            settings=answers.recorded,
        )

    def _ask(
        self,
        questions: list[dict],
        answers: AnswerFile,
        kept: set,
        image_folder: Path,
        decoding,
        refusals: "_Refusals",
    ) -> float | None:
        """Answer this process's part of the batches; return the average sequence positions per image."""
        from tqdm import tqdm

        from llava.eval.generation import Prompt, PromptMaker, answer_batches, split_batches

        args, state, loaded = self.args, self.processes, self._loaded
        make_prompts = PromptMaker(loaded.model, loaded.tokenizer, self.template, image_folder)
        file = LengthFile(answers.path, questions, answers.settings)
        lengths = measure(questions, file, kept, make_prompts, refusals.refuse, state)
        budget = args.token_budget // decoding.num_beams
        batches = split_batches(lengths, args.batch_size, budget, decoding.max_new_tokens)
        unfinished = [batch for batch in batches if _num_new((questions[one.place] for one in batch), kept)]
        mine = [  # adjacent batches have similar lengths, so all processes get similar work
            [questions[one.place] for one in batch]
            for batch in unfinished[state.process_index :: state.num_processes]
        ]
        # errors are dropped: the image of an answered question may no longer exist
        prompts = ([one for one in make_prompts(batch) if isinstance(one, Prompt)] for batch in mine)
        part = f", process 1 of {state.num_processes}" if state.num_processes > 1 else ""
        num_done, total = 0, sum(_num_new(batch, kept) for batch in mine)

        def progress(batch: list, share: float) -> None:
            """Advance the bar within a batch, by the fraction of it that is done."""
            new = _num_new((prompt.question for prompt in batch), kept)
            bar.update(max(0, num_done + int(share * new) - bar.n))

        with tqdm(
            total=total,
            unit="q",
            desc=f"answers{part}",
            smoothing=0.05,
            miniters=1,
            disable=not state.is_main_process,
        ) as bar:
            for question, text in answer_batches(
                loaded.model,
                loaded.tokenizer,
                loaded.image_processor,
                prompts,
                image_folder=image_folder,
                template=self.template,
                decoding=decoding,
                refuse=refusals.refuse,
                progress=progress,
            ):
                if key_of(question) not in kept:
                    answers.append(question, text)
                    num_done += 1
                    bar.update(max(0, num_done - bar.n))
        return _positions_per_image(lengths, questions)


def _positions_per_image(lengths: list[Length], questions: list[dict]) -> float | None:
    num_images = sum(len(images_of(questions[one.place])) for one in lengths)
    # each image is one id in its prompt
    positions = num_images + sum(one.length - one.num_ids for one in lengths)
    return positions / num_images if num_images else None


def _num_new(questions: Iterable[dict], kept: set) -> int:
    """How many of the questions have no answer yet."""
    return sum(key_of(question) not in kept for question in questions)


class _Refusals:
    """If a question cannot be asked: raises an error, or puts {key_of(question): reason} in `skipped`."""

    def __init__(self, kept: set, skip: bool):
        self.kept = kept  # keys of answered questions, which may be asked again; their errors are ignored
        self.skip = skip
        self.skipped: dict = {}

    def refuse(self, question: dict, reason: UserError) -> None:
        if key_of(question) in self.kept:
            return
        if not self.skip:
            raise UserError(
                f"question {question['question_id']}: {reason} (or pass --on_bad_record skip)"
            ) from reason
        self.skipped[key_of(question)] = str(reason)

    def without_image(self, questions: list[dict], folder: Path) -> list[dict]:
        """Drop unanswered questions whose image files are missing; called before a model is loaded."""
        open_questions = [question for question in questions if key_of(question) not in self.kept]
        names = {image for q in open_questions for image in images_of(q) if isinstance(image, str)}
        with progress_bar("image files", len(names), "file") as bar:
            missing = set()
            for name in names:
                if not os.path.isfile(folder / name):
                    missing.add(name)
                bar.update()
        if not missing:
            return questions
        lacking = [(q, image) for q in open_questions for image in images_of(q) if image in missing]
        if not self.skip:
            question, image = lacking[0]
            raise UserError(
                f"{len(lacking)} question(s) name an image that does not exist. The first is question "
                f"{question['question_id']}: {shown_name(folder / image)}; check --image-folder, or pass "
                "--on_bad_record skip."
            )
        for question, image in lacking:
            self.skipped[key_of(question)] = f"image {shown_name(folder / image)} {absence(folder / image)}"
        return [question for question in questions if key_of(question) not in self.skipped]
