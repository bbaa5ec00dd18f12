"""LLaVA-Bench (in the wild): 60 open questions on 24 images; a judge compares each answer with GPT-4's.

Source: Liu et al., "Visual instruction tuning", 2023. The judge reads a description of the image, never the
image itself.
"""

from collections.abc import Callable
from pathlib import Path

from llava.errors import UserError
from llava.eval.metrics import LlavaBenchAnswer, llava_bench_table, parse_score_pair
from llava.eval.records import load_answers, load_questions, read_jsonl
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import find, images_in

QUESTIONS, CONTEXT, REFERENCES = "questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"

# Taken from LLaVA's rule.json, word for word; it is the same for all three categories
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user "
    "question displayed above. The user asks the question on observing an image. For your reference, the "
    "visual content in the image is represented with a few sentences describing the image. \n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant "
    "receives an overall score on a scale of 1 to 10, where a higher score indicates better overall "
    "performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and "
    "2, respectively. The two scores are separated by a space.\n"
    "In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any "
    "potential bias and ensuring that the order in which the responses were presented does not affect your "
    "judgment."
)


def load(folder: Path) -> list[dict]:
    """Return question rows with "category", "context" (a description of the image) and "answer" (GPT-4's)."""
    captions = read_jsonl(folder / CONTEXT, {"image": str, "caption": (str, [str])})
    contexts = {row["image"]: row["caption"] for row in captions}
    references = {row["question_id"]: row["text"] for row in load_answers(folder / REFERENCES)}
    rows = load_questions(folder / QUESTIONS, image=str, category=str)
    for row in rows:
        context = find(contexts, row["image"], folder / CONTEXT)
        row["context"] = "\n".join(context) if isinstance(context, list) else context
        row["answer"] = find(references, row["question_id"], folder / REFERENCES)
    return images_in("images", rows)


def review_prompt(row: dict, answer: str) -> str:
    """Return the prompt for the judge, in which GPT-4 is assistant 1 and the model is assistant 2."""
    return (
        f"[Context]\n{row['context']}\n\n[Question]\n{row['text']}\n\n"
        f"[Assistant 1]\n{row['answer']}\n\n[End of Assistant 1]\n\n"
        f"[Assistant 2]\n{answer}\n\n[End of Assistant 2]\n\n[System]\n{RULE}\n\n"
    )


def judge(rows: list[dict], answers: dict, ask: Callable[..., str]) -> Scores:
    """Score the questions for which the judge's reply begins with two scores; count the others as unparsed.

    Raises:
        UserError: if no reply begins with two scores, so that another judge is needed.
    """
    replies = {
        row["question_id"]: ask(review_prompt(row, answers[row["question_id"]]), SYSTEM) for row in rows
    }
    pairs = {question_id: parse_score_pair(reply) for question_id, reply in replies.items()}
    scored = [row for row in rows if pairs[row["question_id"]]]
    if not scored:
        question_id, reply = next(iter(replies.items()))
        raise UserError(
            "--judge-model: none of its replies begins with a line of two scores from 1 to 10. To question "
            f"{question_id}, it replied {reply[:80]!r}; choose another judge."
        )
    table = llava_bench_table(LlavaBenchAnswer(row["category"], *pairs[row["question_id"]]) for row in scored)  # type: ignore[misc]
    # an answer as good as GPT-4's gets full credit
    credit = {i: min(1.0, pair[1] / pair[0]) for i, pair in pairs.items() if pair}
    unparsed = len(rows) - len(scored)
    return Scores(
        table, ("overall", "relative"), credit, points=("points", "GPT-4's points"), unparsed=unparsed
    )


def export(rows: list[dict], answers: dict, folder: Path) -> list[Path]:
    """Return the answers file itself, which LLaVA's own review script can read."""
    return [folder / "answers.jsonl"]


_HUB = "from https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
TASK = Task(
    name="llava_bench",
    title="LLaVA-Bench (in the wild)",
    folder="llava-bench-in-the-wild",
    needs=(File(QUESTIONS, _HUB), File(CONTEXT, _HUB), File(REFERENCES, _HUB), File("images", _HUB)),
    load=load,
    max_new_tokens=1024,
    export=export,
    submit_to="a judge by --judge-url, or LLaVA's eval_gpt_review_bench.py",
    judge=judge,
)
