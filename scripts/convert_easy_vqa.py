"""Turn the easy-VQA package's questions into LLaVA records and question files; images stay where they are.

    python scripts/convert_easy_vqa.py --data easy_vqa/data --output playground/data/easy_vqa

Paths of images are relative to --data, which training and evaluation take as their image folder. Yes/no
questions are not asked, because their words answer most of them without the image. They are only used to find
out what an image shows.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from output_folder import write_folder

from llava.command import Parser, message
from llava.errors import UserError

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
CATEGORIES = {**dict.fromkeys(COLORS, "color"), **dict.fromkeys(SHAPES, "shape")}
YES_NO = ("yes", "no")
NEGATIONS = {"not", "no"}  # "is there not a circle?", "is no circle present?"
OUTPUTS = ("pretrain.json", "finetune.json", "train_questions.jsonl", "test_questions.jsonl")


def load_questions(data: Path, split: str) -> list[tuple[str, str, str]]:
    """One split's (question, answer, image path relative to `data`), in the package's order.

    Raises UserError if the file is missing or malformed, an answer is unknown, or an image is missing.
    """
    path = data / split / "questions.json"
    remedy = "unpack the easy-vqa package again, as scripts/quickstart.sh does"
    if not path.is_file():
        raise UserError(f"{path} does not exist; {remedy}.")
    try:
        rows = [
            (str(question), str(answer), f"{split}/images/{int(image_id)}.png")
            for question, answer, image_id in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a list of [question, answer, image id] ({error}); {remedy}."
        ) from None
    unknown = sorted({answer for _, answer, _ in rows} - CATEGORIES.keys() - set(YES_NO))
    if unknown:
        raise UserError(f"{path} has answers {unknown}, expected only {', '.join(CATEGORIES)}, yes and no.")
    missing = sorted({image for _, _, image in rows if not (data / image).is_file()})
    if missing:
        raise UserError(
            f"{path} names {len(missing)} images that do not exist, the first {data / missing[0]}; {remedy}."
        )
    return rows


def caption(questions: list[tuple[str, str]]) -> str:
    """Describe an image as far as its (question, answer) pairs allow: "a blue circle", "a circle"...

    Every image shows one shape in one colour. So a word is known if an answer or an affirmed question has it,
    or if all other words of its kind are denied.
    """
    known: set[str] = set()
    denied: set[str] = set()
    for question, answer in questions:
        words = set(re.findall("[a-z]+", question))
        named = words & CATEGORIES.keys()
        negated = not NEGATIONS.isdisjoint(words)
        if answer in YES_NO and (answer == "yes") == negated:
            denied |= named
        else:
            known |= named | ({answer} - set(YES_NO))

    def resolve(kind: tuple[str, ...], otherwise: list[str]) -> list[str]:
        left = [word for word in kind if word in known] or [word for word in kind if word not in denied]
        return left if len(left) == 1 else otherwise

    return " ".join(["a", *resolve(COLORS, []), *resolve(SHAPES, ["shape"])])


def build_records(train: list[tuple[str, str, str]]) -> tuple[list[dict], list[dict]]:
    """Stage 1's captions and stage 2's conversations (all open questions of an image), in order of images."""
    by_image: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, image in train:
        by_image[image].append((question, answer))

    pretrain, finetune = [], []
    for image, questions in sorted(by_image.items(), key=lambda item: int(Path(item[0]).stem)):
        record = {"id": image.removesuffix(".png").replace("/images/", "_"), "image": image}
        pretrain.append(record | {"conversations": _turns([("<image>", caption(questions))])})
        spoken = [(question, answer) for question, answer in questions if answer not in YES_NO]
        if spoken:
            first, *rest = spoken
            turns = [("<image>\n" + first[0], first[1]), *rest]
            finetune.append(record | {"conversations": _turns(turns)})
    return pretrain, finetune


def _turns(pairs: list[tuple[str, str]]) -> list[dict]:
    speakers = ("human", "gpt")
    return [
        {"from": speaker, "value": value}
        for pair in pairs
        for speaker, value in zip(speakers, pair, strict=True)
    ]


def open_questions(rows: list[tuple[str, str, str]]) -> list[dict]:
    """Question-file rows of all questions not answered by yes or no; ids are positions in the package."""
    return [
        {"question_id": i, "image": image, "text": question, "answer": answer, "category": CATEGORIES[answer]}
        for i, (question, answer, image) in enumerate(rows)
        if answer not in YES_NO
    ]


def convert(data: Path, output: Path) -> bool:
    """Convert the package's data folder; returns False when `output` was already complete.

    Raises UserError like `load_questions`.
    """
    return write_folder(output, OUTPUTS, lambda folder: _write(data, folder))


def _write(data: Path, folder: Path) -> None:
    train, test = load_questions(data, "train"), load_questions(data, "test")
    pretrain, finetune = build_records(train)
    for name, rows in zip(
        OUTPUTS, (pretrain, finetune, open_questions(train), open_questions(test)), strict=True
    ):
        if name.endswith(".jsonl"):
            text = "".join(json.dumps(row) + "\n" for row in rows)
        else:
            text = json.dumps(rows, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(rows):,} rows over {len({row['image'] for row in rows}):,} images")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="the package's data folder, with train/ and test/"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        written = convert(options.data, options.output)
    except UserError as error:
        sys.exit(message(error, "convert_easy_vqa"))
    print(f"{options.output}: {'written' if written else 'already complete'}; image folder {options.data}")


if __name__ == "__main__":
    main()
