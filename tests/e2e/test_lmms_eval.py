"""lmms-eval runs unchanged with our folders: VisualPrism, batches, answers and likelihoods."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from benchmarks import write_jsonl
from PIL import Image

from llava.conversation import conv_templates
from llava.eval.records import read_jsonl
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.published.answering import LOADER

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="needs lmms-eval, which scripts/test.sh installs: pip install --no-deps lmms-eval==0.7.3",
)

ROOT = Path(__file__).parents[2]
NUM_QUESTIONS, MAX_NEW_TOKENS = 5, 8
ANSWERS = ("red", "a blue triangle", "the circle is blue")
TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
doc_to_visual: !function utils.visual
doc_to_text: text
doc_to_target: answer
process_results: !function utils.results
metric_list: [{{metric: first, aggregation: mean, higher_is_better: true}}]
"""
KINDS = {
    "tiny_vqa": "output_type: generate_until\n"
    f"generation_kwargs: {{max_new_tokens: {MAX_NEW_TOKENS}, temperature: 0, do_sample: false}}\n",
    "tiny_likelihood": "output_type: loglikelihood\n",
}
UTILS = """
from PIL import Image


def visual(doc):
    return [Image.open(doc["path"]).convert("RGB")]


def results(doc, results):
    return {"first": 1.0}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, questions of several lengths, and two tasks with these questions."""
    folder = tmp_path_factory.mktemp("lmms")
    tiny.save_llava(folder / "model")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "utils.py").write_text(UTILS)
    rows = []
    for i in range(NUM_QUESTIONS):
        path = folder / f"{i}.png"
        Image.new("RGB", (40 + 11 * i, 50), (50 * i, 90, 200 - 30 * i)).save(path)
        text = f"what is {'the big ' * i}shape?"
        rows.append(
            {"question_id": i, "image": path.name, "path": str(path), "text": text}
            | {"answer": ANSWERS[i % 3]}
        )
    write_jsonl(folder / "questions.jsonl", rows)
    for task, kind in KINDS.items():
        text = TASK.format(questions=folder / "questions.jsonl") + f"task: {task}\n{kind}"
        (folder / "tasks" / f"{task}.yaml").write_text(text)
    return folder


def lmms_eval(world: Path, output: Path, batch_size: int) -> dict[str, list[dict]]:
    """Runs lmms-eval; returns the samples of both tasks in the order of the questions."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava", "--tasks", ",".join(KINDS)]
    command += ["--model_args", f"pretrained={world / 'model'},device_map=auto,device=cpu"]
    command += ["--include_path", world / "tasks", "--batch_size", str(batch_size)]
    command += ["--log_samples", "--output_path", output]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(world / "cache"),
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=output.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    samples = {}
    for task in KINDS:
        found = list(output.rglob(f"*_samples_{task}.jsonl"))
        assert len(found) == 1, done.stderr[-4000:]
        path = found[0]
        samples[task] = sorted(read_jsonl(path), key=lambda row: row["doc_id"])
    return samples


@pytest.fixture(scope="module")
def samples(world, tmp_path_factory):
    """The samples of both tasks. The five questions form a batch of four and a batch of one."""
    return lmms_eval(world, tmp_path_factory.mktemp("out") / "results", batch_size=4)


def test_answers_are_ours(world, samples, tmp_path):
    flags = ("--model-path", world / "model", "--question-file", world / "questions.jsonl")
    flags += ("--image-folder", world, "--answers-file", tmp_path / "a.jsonl")
    flags += ("--max_new_tokens", MAX_NEW_TOKENS, "--batch_size", 2)
    assert LOADER.main([str(flag) for flag in flags]) == 0
    ours = [row["text"] for row in read_jsonl(tmp_path / "a.jsonl")]
    assert len(set(ours)) > 1
    theirs = [row["filtered_resps"] for row in samples["tiny_vqa"]]
    assert [text.strip() for text in theirs] == ours


def test_log_likelihoods_are_the_cross_entropy_of_the_answer_alone(world, samples):
    tokenizer, model, image_processor, _ = load_pretrained_model(world / "model", device="cpu")
    questions = read_jsonl(world / "questions.jsonl")
    for question, row in zip(questions, samples["tiny_likelihood"], strict=True):
        conversation = conv_templates["vicuna_v1"].copy()
        conversation.append_message(conversation.roles[0], f"<image>\n{question['text']}")
        conversation.append_message(conversation.roles[1], None)
        start = len(tokenizer_image_token(conversation.get_prompt(), tokenizer))
        conversation.messages[1][1] = question["answer"]
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")
        pixels = process_images([Image.open(question["path"])], image_processor, model.config)
        with torch.inference_mode():
            logits = model(input_ids=ids[None], images=pixels).logits[0]
        num_answer = len(ids) - start
        expected = torch.nn.functional.cross_entropy(logits[-num_answer - 1 : -1], ids[start:]).item()
        loss, _ = ast.literal_eval(row["filtered_resps"])
        assert loss == pytest.approx(expected, rel=1e-2)  # lmms-eval rounds pixels to half precision
