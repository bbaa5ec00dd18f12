"""Benchmarks with a few questions each, in their real file formats. The right answers are known."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def save_images(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # without a suffix, as in SEED-Bench
        Image.new("RGB", (40 + 9 * i, 50), (60 * i % 256, 90, 200)).save(folder / name, "PNG")


def ten(*answers: str) -> list[str]:
    """Ten people's answers. All people who are not given an answer give the first one."""
    return [*answers, *[answers[0]] * (10 - len(answers))]


def vqav2(root: Path) -> Path:
    folder = root / "vqav2"
    rows = [
        {
            "question_id": 262144000 + i,
            "image": "COCO_test2015_000000262144.jpg",
            "text": f"{question}\n{WORD}",
            "category": "default",
        }
        for i, question in enumerate(("Is the ball flying?", "What colour is the café?", "How many?", "Why?"))
    ]
    write_jsonl(folder / "llava_vqav2_mscoco_test2015.jsonl", rows)
    write_jsonl(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", [rows[2], rows[0]])
    save_images(folder, "test2015/COCO_test2015_000000262144.jpg")
    return folder


def vqav2_val(root: Path) -> Path:
    folder = root / "vqav2"
    people = {
        262148000: ("yes/no", ten("yes")),
        262148001: ("number", ["2", "2", *["3"] * 8]),
        262148002: ("other", ten("ice cream")),
    }
    questions = [
        {"image_id": 262148, "question": f"What is it, {i}?", "question_id": number}
        for i, number in enumerate(people)
    ]
    annotations = [
        {
            "question_id": number,
            "image_id": 262148,
            "question_type": "what",
            "multiple_choice_answer": answers[0],
            "answer_type": kind,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1}
                for i, answer in enumerate(answers)
            ],
        }
        for number, (kind, answers) in reversed(people.items())
    ]
    write_json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    save_images(folder, "val2014/COCO_val2014_000000262148.jpg")
    return folder


def gqa(root: Path) -> Path:
    folder = root / "gqa"
    known = {"201307251": ("no", "verify"), "201640614": ("girl", "query"), "202225914": ("left", "choose")}
    write_jsonl(
        folder / "llava_gqa_testdev_balanced.jsonl",
        [
            {"question_id": i, "image": "n161313.jpg", "text": f"Which {i}?\n{WORD}", "category": "default"}
            for i in known
        ],
    )
    write_json(
        folder / "data" / "testdev_balanced_questions.json",
        {
            i: {
                "question": f"Which {i}?",
                "imageId": "n161313",
                "isBalanced": True,
                "answer": answer,
                "types": {"detailed": "x", "semantic": "attr", "structural": structural},
                "fullAnswer": f"It is {answer}.",
            }
            for i, (answer, structural) in known.items()
        },
    )
    save_images(folder, "data/images/n161313.jpg")
    return folder


def vizwiz(root: Path) -> Path:
    folder = root / "vizwiz"
    names = [f"VizWiz_test_0000000{i}.jpg" for i in range(2)]
    hint = "When the provided information is insufficient, respond with 'Unanswerable'."
    write_jsonl(
        folder / "llava_test.jsonl",
        [
            {"question_id": i, "image": name, "text": f"What is this?\n{hint}\n{WORD}", "category": "default"}
            for i, name in enumerate(names)
        ],
    )
    save_images(folder / "test", *names)
    return folder


def vizwiz_val(root: Path) -> Path:
    folder = root / "vizwiz"
    people = {
        "VizWiz_val_00000000.jpg": ("unanswerable", ten("unanswerable")),
        "VizWiz_val_00000001.jpg": ("other", ["soda", *["coke"] * 9]),
    }
    write_json(
        folder / "val.json",
        [
            {
                "image": name,
                "question": "What's this?",
                "answers": [{"answer_confidence": "yes", "answer": answer} for answer in answers],
                "answer_type": kind,
                "answerable": int(kind == "other"),
            }
            for name, (kind, answers) in people.items()
        ],
    )
    save_images(folder / "val", *people)
    return folder


def scienceqa(root: Path) -> Path:
    folder = root / "scienceqa"
    # id: (subject, grade, hint, image, choices, answer)
    known = {
        "4": ("language science", "grade2", "", None, ["sense", "nonsense"], 0),
        "5": ("natural science", "grade8", "Mass is 3 kg.", "image.png", ["1", "2", "3"], 2),
        "11": ("social science", "grade5", "", "image.png", ["Peru", "Chile", "Cuba", "Fiji"], 1),
    }
    problems = {
        i: {
            "question": f"Which is {i}?",
            "choices": choices,
            "answer": answer,
            "hint": hint,
            "image": image,
            "grade": grade,
            "subject": subject,
            "split": "test",
        }
        for i, (subject, grade, hint, image, choices, answer) in known.items()
    }
    write_json(folder / "problems.json", problems | {"1": problems["4"] | {"split": "train"}})
    write_json(folder / "pid_splits.json", {"train": ["1"], "test": list(known)})
    records = []
    for i, problem in problems.items():
        options = "\n".join(
            f"{letter}. {text}" for letter, text in zip("ABCDE", problem["choices"], strict=False)
        )
        context = "<image>\n" if problem["image"] else ""
        turn = {"from": "human", "value": f"{context}Context: N/A\n{problem['question']}\n{options}"}
        record = {"id": i, "conversations": [turn, {"from": "gpt", "value": "The answer is A."}]}
        if problem["image"]:
            record["image"] = f"{i}/image.png"
            save_images(folder / "images" / "test", record["image"])
        records.append(record)
    write_json(folder / "llava_test_CQM-A.json", records)
    return folder


def textvqa(root: Path) -> Path:
    """Two questions about one image, so both have the same id in the question file."""
    folder = root / "textvqa"
    image = "003a8ae2ef43b901"
    known = {
        34602: ("What is the brand of this camera?", ten("dakota")),
        34603: ("what does the small white text spell?", ["copenhagen", "copenhagen", *["drupalcon"] * 8]),
    }
    rows = [
        {
            "question_id": image,
            "image": f"{image}.jpg",
            "text": f"{question.lower()}\nReference OCR token: DAKOTA, Ünï\n{WORD}",
            "category": "default",
        }
        for question, _ in reversed(known.values())
    ]
    write_jsonl(folder / "llava_textvqa_val_v051_ocr.jsonl", rows)
    data = [
        {
            "question": question,
            "image_id": image,
            "answers": answers,
            "question_id": number,
            "set_name": "val",
        }
        for number, (question, answers) in known.items()
    ]
    write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})
    save_images(folder, f"train_images/{image}.jpg")
    return folder


def pope(root: Path) -> Path:
    folder = root / "pope"
    rows = []
    for category in ("random", "popular", "adversarial"):
        labels = [
            {"question_id": i, "image": "COCO_val2014_1.jpg", "text": f"Is there a {category} {label}?"}
            | {"label": label}
            for i, label in enumerate(("yes", "no"), start=1)
        ]
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", labels)
        rows += [
            {
                "question_id": len(rows) + i,
                "image": label["image"],
                "text": f"{label['text']}\n{WORD}",
                "category": category,
            }
            for i, label in enumerate(labels)
        ]
    write_jsonl(folder / "llava_pope_test.jsonl", rows)
    save_images(folder, "val2014/COCO_val2014_1.jpg")
    return folder


def mme(root: Path) -> Path:
    """Two tasks: one has its images beside its questions, the other has both in separate folders."""
    folder = root / "MME"
    places = {"existence": ("{}", "{}"), "OCR": ("images/{}", "questions_answers_YN/{}")}
    release = folder / "MME_Benchmark_release_version"
    rows = []
    for category, (image, questions) in places.items():
        for name in ("0006", "0021"):
            asked = {f"Is there a {category} {name}?": "Yes", f"Is there another {category} {name}?": "No"}
            path = release / category / questions.format(f"{name}.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            # the real files also have two blanks before the instruction
            path.write_text("".join(f"{q}  Please answer yes or no.\t{a}\n" for q, a in asked.items()))
            save_images(release / category, image.format(f"{name}.jpg"))
            for question in asked:
                rows.append(
                    {
                        "question_id": f"{category}/{name}.jpg",
                        "image": f"{category}/{image.format(f'{name}.jpg')}",
                        "text": f"{question}\n{WORD}",
                        "category": category,
                    }
                )
    write_jsonl(folder / "llava_mme.jsonl", rows)
    return folder


def encoded_image() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 50), "teal").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


MMBENCH_COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source"),
    *("l2-category", "comment", "split"),
)


def mmbench(root: Path, name: str = "mmbench_dev_20230712.tsv") -> Path:
    """Question 241, whose three rotations come last, and 242 with two options and a hint in quotes."""
    folder = root / "mmbench"
    options = ["a, left", "b", "c", "d"]
    rows = [
        {"index": 241, "question": "Which?", "answer": "A"} | dict(zip("ABCD", options, strict=True)),
        {"index": 242, "question": 'Is it "big"?', "hint": "Zwei\nZeilen, größer", "A": "yes", "B": "no"}
        | {"answer": "B", "category": "logic"},
        {"index": 1000242, "question": 'Is it "big"?', "hint": "Zwei\nZeilen, größer", "A": "no", "B": "yes"}
        | {"answer": "A", "category": "logic"},
    ]
    for shift in range(1, 4):
        rotated = options[shift:] + options[:shift]
        row = {"index": shift * 1_000_000 + 241, "question": "Which?", "answer": "ADCB"[shift]}
        rows.append(row | dict(zip("ABCD", rotated, strict=True)))
    shared = {"category": "location", "l2-category": "perception", "image": encoded_image(), "split": "dev"}
    lines = ["\t".join(MMBENCH_COLUMNS)]
    for row in rows:
        cells = (str({**shared, **row}.get(column, "")) for column in MMBENCH_COLUMNS)
        lines.append(
            "\t".join(f'"{c.replace(chr(34), chr(34) * 2)}"' if set(c) & set('"\n') else c for c in cells)
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def mmbench_cn(root: Path) -> Path:
    return mmbench(root, "mmbench_dev_cn_20231003.tsv")


def seed(root: Path) -> Path:
    folder = root / "seed_bench"
    # id in SEED-Bench.json: (type, image or video, answer)
    known = {"101669": (5, "image", "A"), "101670": (1, "image", "C"), "v_9": (10, "video", "D")}
    names = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    options = "A. One\nB. Two\nC. Three\nD. Four"
    rows, questions = [], []
    for i, (kind, medium, answer) in known.items():
        image = f"SEED-Bench-{'image' if medium == 'image' else 'video-image'}/{i}_25"
        save_images(folder, image)
        rows.append(
            {
                "question_id": int(i) if i.isdecimal() else i,
                "image": image,
                "text": f"How many towels, {i}?\n{options}\n{LETTER}",
            }
        )
        questions.append(
            {
                "answer": answer,
                "choice_a": "One",
                "choice_b": "Two",
                "choice_c": "Three",
                "choice_d": "Four",
                "data_id": f"{i}_25",
                "data_type": medium,
                "question": f"How many towels, {i}?",
                "question_id": i,
                "question_type_id": kind,
            }
        )
    write_jsonl(folder / "llava-seed-bench.jsonl", rows)
    write_json(folder / "SEED-Bench.json", {"question_type": names, "questions": questions[::-1]})
    return folder


def prismvqa(root: Path) -> Path:
    folder = root / "prismvqa"
    asked = (
        ("count", "How many circles are there?", "3", 1 / 6),
        ("exist", "Is there a red star?", "no", 1 / 2),
        ("locate", "In which quarter of the picture is the star?", "top left", 1 / 4),
        ("locate", "What color is the object in the top left quarter?", "blue", 1 / 8),
    )
    rows = [
        {
            "question_id": i,
            "image": f"test/images/{i // 2:06d}.webp",
            "family": family,
            "text": text,
            "answer": answer,
            "form": family,
            "chance": chance,
        }
        for i, (family, text, answer, chance) in enumerate(asked)
    ]
    write_jsonl(folder / "test.jsonl", rows)
    save_images(folder, *(f"test/images/{i:06d}.webp" for i in range(2)))
    return folder


BUILDERS = {
    "vqav2": vqav2,
    "vqav2_val": vqav2_val,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "vizwiz_val": vizwiz_val,
    "scienceqa": scienceqa,
    "textvqa": textvqa,
    "pope": pope,
    "prismvqa": prismvqa,
    "mme": mme,
    "mmbench": mmbench,
    "mmbench_cn": mmbench_cn,
    "seed": seed,
}


def values(scores) -> dict:
    """The Scores of a task as {part: {measure: value}}."""
    return {part: {name: s.value for name, s in row.items()} for part, row in scores.table.items()}


def answered(rows: list[dict], *texts: str) -> dict:
    """The answers to a task's rows, in the order of the rows."""
    return dict(zip((row["question_id"] for row in rows), texts, strict=True))
