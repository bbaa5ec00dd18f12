"""lmms-eval runs unchanged on our folders, as training writes them and exported: its answers are ours."""

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
from llava.export.folder import export
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
    """Two model folders, one of them also exported; questions of several lengths, and two tasks on them."""
    folder = tmp_path_factory.mktemp("lmms")
    tiny.save_llava(folder / "model")
    tiny.save_llava(folder / "mlp", mm_projector_type="mlp2x_gelu")
    export(str(folder / "mlp"), folder / "exported")
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


def lmms_eval(
    world: Path, output: Path, kind: str, settings: str, tasks=tuple(KINDS), batch_size: int = 1
) -> dict[str, list[dict]]:
    """Samples of each task, in the questions' order.

    Args:
        kind, settings: lmms-eval's --model and --model_args.
    """
    command = [sys.executable, "-m", "lmms_eval", "--model", kind, "--tasks", ",".join(tasks)]
    command += ["--model_args", settings, "--include_path", world / "tasks", "--batch_size", batch_size]
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
    for task in tasks:
        found = list(output.rglob(f"*_samples_{task}.jsonl"))
        assert len(found) == 1, done.stderr[-4000:]
        path = found[0]
        samples[task] = sorted(read_jsonl(path), key=lambda row: row["doc_id"])
    return samples


@pytest.fixture(scope="module")
def samples(world, tmp_path_factory):
    """Of both tasks. The five questions are a batch of four and a batch of one."""
    settings = f"pretrained={world / 'model'},device_map=auto,device=cpu"
    return lmms_eval(world, tmp_path_factory.mktemp("out") / "results", "llava", settings, batch_size=4)


def our_answers(world: Path, model: str, answers: Path) -> list[str]:
    flags = ("--model-path", world / model, "--question-file", world / "questions.jsonl")
    flags += ("--image-folder", world, "--answers-file", answers)
    flags += ("--max_new_tokens", MAX_NEW_TOKENS, "--batch_size", 2)
    assert LOADER.main([str(flag) for flag in flags]) == 0
    ours = [row["text"] for row in read_jsonl(answers)]
    assert len(set(ours)) > 1
    return ours


def texts(samples: list[dict]) -> list[str]:
    return [row["filtered_resps"].strip() for row in samples]


def test_answers_are_ours(world, samples, tmp_path):
    assert texts(samples["tiny_vqa"]) == our_answers(world, "model", tmp_path / "a.jsonl")


@pytest.mark.skipif(
    importlib.util.find_spec("decord") is None,
    reason="lmms-eval's llava_hf needs decord, which the extra dev brings on Linux on x86-64",
)
def test_answers_of_an_exported_folder_are_ours(world, tmp_path):
    settings = f"pretrained={world / 'exported'},device=cpu,device_map=cpu"
    theirs = lmms_eval(world, tmp_path / "results", "llava_hf", settings, ["tiny_vqa"])
    assert texts(theirs["tiny_vqa"]) == our_answers(world, "mlp", tmp_path / "a.jsonl")


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
