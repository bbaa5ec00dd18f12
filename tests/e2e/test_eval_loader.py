"""model_vqa_loader with a tiny random model: batches, resuming, bad records, settings."""

import json

import numpy as np
import pytest
import tiny
import torch
from messages import assert_names
from PIL import Image

import llava.model.builder
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import question_prompt, template_named
from llava.mm_utils import load_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.published.answering import LOADER

NUM_IMAGES, NEW_TOKENS = 7, 10
parse_args, evaluate, main = LOADER.parse_args, LOADER.evaluate, LOADER.main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, images of several shapes, and questions of several lengths, one without an image."""
    folder = tmp_path_factory.mktemp("eval")
    tiny.save_llava(folder / "model")
    noise = np.random.default_rng(0)
    questions = [{"question_id": "text-only", "text": "what is blue?"}]
    for i in range(NUM_IMAGES):
        colour = noise.integers(0, 256, 3)
        pixels = np.full((40 + 9 * i, 60, 3), colour) * noise.random((40 + 9 * i, 60, 1))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        text = f"what colour is {'the red ' * (3 * i % 7)}circle?"
        questions.append({"question_id": i, "image": f"{i}.png", "text": text})
    write_questions(folder, questions)
    return folder


def write_questions(folder, questions, name="questions.jsonl"):
    (folder / name).write_text("".join(json.dumps(question) + "\n" for question in questions))


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def flags(world, answers, *more):
    return [
        *("--model-path", str(world / "model"), "--image-folder", str(world)),
        *("--question-file", str(world / "questions.jsonl"), "--answers-file", str(answers)),
        *("--max_new_tokens", str(NEW_TOKENS), *more),
    ]


def ask(world, answers, *more):
    return evaluate(parse_args(flags(world, answers, *more)))


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory):
    """The answers file of a plain run."""
    path = tmp_path_factory.mktemp("reference") / "answers.jsonl"
    ask(world, path)
    return path


def no_model(*args, **kwargs):
    raise AssertionError("the model was loaded")


def test_rows_are_in_question_order_and_in_llavas_format(world, reference):
    rows = read_rows(reference)
    questions = read_rows(world / "questions.jsonl")
    assert [row["question_id"] for row in rows] == [question["question_id"] for question in questions]
    assert [row["prompt"] for row in rows] == [question["text"] for question in questions]
    assert set(rows[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert len({row["text"] for row in rows}) > 3  # otherwise the comparisons below would prove nothing


@pytest.mark.parametrize("more", [("--batch_size", "1"), ("--batch_size", "3"), ("--token_budget", "200")])
def test_answers_do_not_depend_on_the_batch_size(world, reference, tmp_path, more):
    ask(world, tmp_path / "a.jsonl", *more)
    assert (tmp_path / "a.jsonl").read_bytes() == reference.read_bytes()


def test_answers_are_those_of_a_bare_generate_call(world, reference):
    tokenizer, model, image_processor, _ = load_pretrained_model(str(world / "model"))
    for row, question in zip(read_rows(reference), read_rows(world / "questions.jsonl"), strict=True):
        images = [load_image(world / question["image"])] if "image" in question else []
        prompt = question_prompt(question["text"], len(images), template_named("vicuna_v1"))
        input_ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]
        pixels = process_images(images, image_processor, model.config) if images else None
        new_ids = model.generate(input_ids, images=pixels, do_sample=False, max_new_tokens=NEW_TOKENS)
        assert tokenizer.decode(new_ids[0], skip_special_tokens=True).strip() == row["text"]


def test_an_image_changes_the_answer(world, reference, tmp_path):
    questions = read_rows(world / "questions.jsonl")
    write_questions(
        world, [{**questions[1], "image": f"{i}.png", "question_id": i} for i in range(4)], "same.jsonl"
    )
    ask(world, tmp_path / "a.jsonl", "--question-file", str(world / "same.jsonl"))
    assert len({row["text"] for row in read_rows(tmp_path / "a.jsonl")}) > 1


def test_a_killed_run_goes_on_where_it_stopped(world, reference, tmp_path, capsys):
    lines = reference.read_bytes().splitlines(keepends=True)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines[5] + lines[2] + lines[3][:-9])
    ask(world, path)
    assert "2 answers kept, 6 questions left" in capsys.readouterr().out
    assert path.read_bytes() == reference.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_finished_run_loads_no_model(world, reference, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(reversed(reference.read_bytes().splitlines(keepends=True))))
    monkeypatch.setattr(llava.model.builder, "load_pretrained_model", no_model)
    ask(world, path)
    assert path.read_bytes() == reference.read_bytes()


def test_answers_of_another_training_or_other_settings_are_not_continued(world, reference, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(reference.read_bytes())
    with pytest.raises(ValueError, match="max_new_tokens was 10, now 11"):
        ask(world, path, "--max_new_tokens", "11")
    other = tiny.save_llava(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match="weights was"):
        ask(world, path, "--model-path", str(other))
    assert path.read_bytes() == reference.read_bytes()


def test_chunks_join_to_the_whole(world, reference, tmp_path):
    for i in range(3):
        ask(world, tmp_path / f"{i}.jsonl", "--num-chunks", "3", "--chunk-idx", str(i))
    joined = b"".join((tmp_path / f"{i}.jsonl").read_bytes() for i in range(3))
    assert joined == reference.read_bytes()


@pytest.fixture
def damaged(world):
    """Questions about a missing and a truncated image among good ones; returns the flags for their file."""
    (world / "cut.png").write_bytes((world / "0.png").read_bytes()[:500])
    questions = read_rows(world / "questions.jsonl")
    bad = [
        {"question_id": f"bad-{name}", "image": f"{name}.png", "text": "what?"} for name in ("cut", "none")
    ]
    write_questions(world, [*questions[:3], *bad, *questions[3:]], "damaged.jsonl")
    write_questions(world, [*questions[:3], bad[0], *questions[3:]], "cut.jsonl")
    return world


def test_a_missing_image_fails_before_the_model_is_loaded(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(llava.model.builder, "load_pretrained_model", no_model)
    with pytest.raises(ValueError, match=r"question bad-none: .*none\.png; check --image-folder"):
        ask(damaged, tmp_path / "a.jsonl", "--question-file", str(damaged / "damaged.jsonl"))


def test_a_corrupt_image_fails_and_is_named(damaged, tmp_path, capsys):
    argv = flags(damaged, tmp_path / "a.jsonl", "--question-file", str(damaged / "cut.jsonl"))
    assert main(argv) == 1
    assert "question bad-cut: Image file" in capsys.readouterr().err


def test_bad_records_are_skipped_counted_and_listed_on_demand(damaged, reference, tmp_path, capsys):
    argv = flags(damaged, tmp_path / "a.jsonl", "--question-file", str(damaged / "damaged.jsonl"))
    assert main([*argv, "--on_bad_record", "skip", "--batch_size", "4"]) == 0
    out = capsys.readouterr().out
    assert "skipped question bad-cut" in out
    assert "skipped question bad-none" in out
    assert "2 question(s) skipped" in out
    assert (tmp_path / "a.jsonl").read_bytes() == reference.read_bytes()


def test_the_template_comes_from_the_config_and_the_flag_overrides_it(tmp_path, world):
    folder = tiny.save_llava(tmp_path / "vicuna_v1", conv_version="qwen_2")
    for more, name in (((), "qwen_2"), (("--conv-mode", "v0"), "v0")):
        path = tmp_path / f"{name}.jsonl"
        ask(world, path, "--model-path", str(folder), "--num-chunks", "4", *more)
        assert {row["metadata"]["conv_mode"] for row in read_rows(path)} == {name}


def test_scale_factor_and_aspect_ratio_can_be_overridden(world, reference, tmp_path):
    ask(world, tmp_path / "a.jsonl", "--scale_factor", "3", "--image_aspect_ratio", "pad")
    rows = read_rows(tmp_path / "a.jsonl")
    assert rows[0]["metadata"]["scale_factor"] == 3
    assert [row["text"] for row in rows] != [row["text"] for row in read_rows(reference)]
    with pytest.raises(ValueError, match="--scale_factor.*6x6.*4"):
        ask(world, tmp_path / "b.jsonl", "--scale_factor", "4")


def test_beams_and_sampling_run_in_batches(world, tmp_path):
    ask(world, tmp_path / "beams.jsonl", "--num_beams", "2")
    torch.manual_seed(0)
    ask(world, tmp_path / "sampled.jsonl", "--temperature", "0.7", "--top_p", "0.9")
    assert (
        len(read_rows(tmp_path / "beams.jsonl"))
        == len(read_rows(tmp_path / "sampled.jsonl"))
        == NUM_IMAGES + 1
    )


def test_a_folder_without_a_config_is_named(world, tmp_path, capsys):
    assert main(flags(world, tmp_path / "a.jsonl", "--model-path", str(tmp_path / "nothing"))) == 1
    assert_names(capsys.readouterr().err, "nothing has no config.json")
