"""MM-Vet: open questions that need several abilities at once, scored from 0 to 1 by a judge.

Source: Yu et al., "MM-Vet: evaluating large multimodal models for integrated capabilities", 2023.
"""

import json
from collections.abc import Callable
from pathlib import Path

from llava.errors import UserError
from llava.eval.metrics import MMVetAnswer, mmvet_table, parse_correctness
from llava.eval.task import File, Scores, Task
from llava.eval.tasks.shared import WHOLE_NUMBER, one_file, read_json

QUESTIONS = "mm-vet.json"
QUESTION = {"imagename": str, "question": str, "answer": str, "capability": [str, ...]}
ID_PREFIX = "v1_"  # of the benchmark's ids; LLaVA's answers have only the number

_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries "
    "Iceland and Greenland are misleading. Despite its name, Iceland is known for its beautiful green "
    "landscapes, while Greenland is mostly covered in ice and snow. The meme is saying that the person has "
    "trust issues because the names of these countries do not accurately represent their landscapes. | "
)
# The prompt of MM-Vet's evaluator, word for word
RULE = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. "
    "<AND> in the ground truth means it is totally right only when all elements in the ground truth are "
    "present in the prediction, and <OR> means it is totally right when any one element in the ground truth "
    "is present in the prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, "
    "0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just complete the last space of the correctness score.\n\n"
    "Question | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\n"
    "What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0\n"
    f"{_MEME}The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland "
    "is not very icy and Greenland isn't very green. | 0.4\n"
    f"{_MEME}The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. "
    "Iceland, despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. "
    "The text 'This is why I have trust issues' is a playful way to suggest that these contradictions can "
    "lead to distrust or confusion. The humor in this meme is derived from the unexpected contrast between "
    "the names of the countries and their actual physical characteristics. | 1.0\n"
)


def load(folder: Path) -> list[dict]:
    """Return question rows with "answer" and "capability"; the text is unchanged, as LLaVA-1.5 asks it."""
    return [
        {
            "question_id": int(question_id.removeprefix(ID_PREFIX)),
            "image": f"images/{row['imagename']}",
            "text": row["question"],
            "answer": row["answer"],
            "capability": row["capability"],
        }
        for question_id, row in _published(folder / QUESTIONS).items()
    ]


def _published(path: Path) -> dict[str, dict]:
    rows = read_json(path, {str: QUESTION})
    if odd := [name for name in rows if not WHOLE_NUMBER.fullmatch(name.removeprefix(ID_PREFIX))]:
        raise UserError(f"{path}: {odd[0]!r} is not a question's id like {ID_PREFIX}0; fetch the file again.")
    return rows


def review_prompt(row: dict, answer: str) -> str:
    """Return the prompt for the judge, which asks it to complete the last row of a table."""
    truth = row["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{RULE}\n" + " | ".join([row["text"], truth, answer, ""])


def judge(rows: list[dict], answers: dict, ask: Callable[..., str]) -> Scores:
    """Return mean scores; a reply without a score at its start gives 0, as in MM-Vet, and is unparsed."""
    found = {
        row["question_id"]: parse_correctness(ask(review_prompt(row, answers[row["question_id"]])))
        for row in rows
    }
    credit = {question_id: score or 0.0 for question_id, score in found.items()}
    table = mmvet_table(MMVetAnswer(credit[row["question_id"]], row["capability"]) for row in rows)
    return Scores(table, ("overall", "score"), credit, unparsed=list(found.values()).count(None))


def submission(answers: dict) -> str:
    """Return the evaluator's file: {"v1_0": the model's answer, ...}."""
    return json.dumps({f"{ID_PREFIX}{i}": text for i, text in answers.items()}, indent=2, ensure_ascii=False)


_ZIP = "in https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip, below mm-vet"
TASK = Task(
    name="mmvet",
    title="MM-Vet",
    folder="mmvet",
    needs=(File(QUESTIONS, _ZIP), File("images", _ZIP)),
    load=load,
    max_new_tokens=1024,
    export=one_file("answers_upload.json", lambda rows, answers: submission(answers)),
    submit_to="https://huggingface.co/spaces/whyu/MM-Vet_Evaluator",
    judge=judge,
)
