"""The flags that choose a model, and loading a model by them."""

from argparse import Namespace

import pytest
import tiny
from messages import assert_names

import llava.model.builder
from llava.command import Parser
from llava.conversation import conv_templates
from llava.errors import UserError
from llava.inference import MODEL, add_flags, load_by_flags, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.save_llava(tmp_path_factory.mktemp("inference") / "model", conv_version="qwen_2"))


def load(folder, *argv):
    parser = Parser()
    add_flags(parser, *MODEL)
    return load_by_flags(parser.parse_args(["--model-path", folder, *argv]))


def test_a_model_comes_with_its_own_template_and_settings(folder):
    loaded = load(folder)
    config = loaded.model.config
    assert (loaded.template, loaded.compiled) == (conv_templates["qwen_2"], False)
    assert (config.scale_factor, config.image_aspect_ratio) == (2, "square")
    assert loaded.context_length == config.max_position_embeddings
    assert loaded.tokenizer("a")["input_ids"]
    assert loaded.image_processor.image_mean


def test_flags_override_what_the_folder_says(folder):
    flags = ["--conv-mode", "mpt", "--scale_factor", "3", "--image-aspect-ratio", "pad", "--compile"]
    loaded = load(folder, *flags)
    assert (loaded.template, loaded.compiled) == (conv_templates["mpt"], True)
    assert (loaded.model.config.scale_factor, loaded.model.config.image_aspect_ratio) == (3, "pad")


def test_flags_that_a_caller_leaves_out_are_as_by_default(folder):
    """LLaVA's documentation calls run_llava.eval_model with an object that has only some attributes."""
    bare = type("Args", (), {"model_path": folder})()
    for args in (bare, Namespace(model_path=folder)):
        assert load_by_flags(args).template == conv_templates["qwen_2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_mode": "none"}, "^--conv-mode.*'none'"),
        ({"image_aspect_ratio": "round"}, "^--image_aspect_ratio.*square, pad.*'round'"),
        ({"device": "typewriter"}, "^--device typewriter"),
    ],
)
def test_what_cannot_be_is_refused_ahead_of_loading(folder, monkeypatch, options, message):
    monkeypatch.setattr(llava.model.builder, "load_pretrained_model", None)
    with pytest.raises(UserError, match=message):
        load_model(folder, **options)


def test_a_default_of_a_command_takes_the_place_of_the_shared_one(capsys):
    parser = Parser()
    add_flags(parser, "--max-new-tokens", "--temperature", "--conv_mode", temperature=0.2)
    args = parser.parse_args(["--max_new_tokens=7"])
    assert (args.max_new_tokens, args.temperature, args.conv_mode) == (7, 0.2, None)
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-new-tokens", "0"])
    assert_names(capsys.readouterr().err.rpartition("error:")[2], "--max-new-tokens", "1", "'0'")
