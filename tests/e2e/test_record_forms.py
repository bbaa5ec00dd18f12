"""Training on a mixture of forms equals training on the same records in LLaVA's JSON."""

import json

import pytest
from record_forms import embedded, messages, texts, write_json, write_jsonl, write_parquet
from stages import weights
from training_parts import flags, losses

from llava.train.train import train


@pytest.fixture(scope="module")
def records(parts):
    return [json.loads((parts / "conversations.json").read_text())[start : start + 4] for start in (0, 4)]


def test_a_mixture_of_forms_trains_a_step_as_the_same_records_in_json(parts, tmp_path, records):
    images = parts / "images"
    rows = [[form(record) for record in part] for form, part in zip((messages, texts), records, strict=True)]
    write_jsonl(tmp_path / "messages.jsonl", rows[0])
    write_parquet(tmp_path / "pairs" / "train-0.parquet", [embedded(row, images) for row in rows[1]])
    for number, part in enumerate(records):
        write_json(tmp_path / f"{number}.json", part)
    forms = ["messages.jsonl", "pairs"], ["0.json", "1.json"]
    for name, paths in zip(("forms", "json"), forms, strict=True):
        argv = flags(
            parts, tmp_path / name, "conversations.json", version="qwen_2", max_steps=1, save_steps=1
        )
        given = [str(tmp_path / path) for path in paths]
        evaluation = ["--eval_strategy", "steps", "--eval_steps", "1", "--eval_data_path", given[1]]
        train([*argv, "--data_path", *given, "--data_weights", "1", "0.5", *evaluation])
    assert losses(tmp_path / "forms") == losses(tmp_path / "json")
    assert weights(tmp_path / "forms") == weights(tmp_path / "json")
