"""The effect of --dtype, --attn_implementation and --compile on commands, with a tiny model."""

import json

import numpy as np
import pytest
import tiny
import torch
from messages import assert_names
from PIL import Image

import llava.model.builder
import llava.serve.chat
from llava.eval import run_llava
from llava.published.answering import LOADER
from llava.serve import api, cli, web
from llava.visualization import distribution, heatmap, prism

COLOURS = ("red", "blue", "teal", "white")
ALL = ("--dtype", "bf16", "--attn_implementation", "eager", "--device", "cpu", "--load-4bit", "--compile")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, a picture of each colour, and twice as many questions."""
    folder = tmp_path_factory.mktemp("loading")
    tiny.save_llava(folder / "model")
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (60, 40 + 9 * i), colour).save(folder / f"{i}.png")
    questions = [
        {"question_id": i, "image": f"{i % 4}.png", "text": f"what is {'the red ' * (i % 3)}circle?"}
        for i in range(2 * len(COLOURS))
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


def answers(world, path, *more) -> list[dict]:
    """Runs the command with batches of four; returns its answers."""
    argv = ["--model-path", str(world / "model"), "--image-folder", str(world), "--answers-file", str(path)]
    argv += ["--question-file", str(world / "questions.jsonl"), "--max_new_tokens", "8", "--batch_size", "4"]
    assert LOADER.main([*argv, *more]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def loaded(monkeypatch):
    """The models that commands load."""
    models = []
    load = llava.model.builder.load_pretrained_model

    def watched(*args, **kwargs):
        result = load(*args, **kwargs)
        models.append(result[1])
        return result

    monkeypatch.setattr(llava.model.builder, "load_pretrained_model", watched)
    return models


@pytest.fixture
def compiled(monkeypatch):
    """The names of compiled functions; only the compiler's front end runs, which takes seconds."""
    names, compiler = [], torch.compile

    def front_end(function, dynamic=None, **options):
        names.append(function.__name__)
        return compiler(function, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", front_end)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return names


def test_answers_are_given_in_the_dtype_and_by_the_attention_asked_for(world, tmp_path, loaded, capsys):
    rows = answers(world, tmp_path / "a.jsonl", "--dtype", "bf16", "--attn_implementation", "eager")
    assert {parameter.dtype for parameter in loaded[0].parameters()} == {torch.bfloat16}
    assert loaded[0].config._attn_implementation == "eager"
    assert len({row["text"] for row in rows}) > 1
    for row in rows:
        assert (row["metadata"]["dtype"], row["metadata"]["attn_implementation"]) == ("bf16", "eager")
    with pytest.raises(AssertionError):
        answers(world, tmp_path / "a.jsonl")
    error = capsys.readouterr().err
    assert "attn_implementation was 'eager', now None" in error
    assert "dtype was 'bf16', now 'fp32'" in error  # auto means fp32 on a CPU


def test_answers_are_given_on_the_device_and_in_the_bits_asked_for(world, tmp_path, loaded, capsys):
    bnb = pytest.importorskip("bitsandbytes")
    # bitsandbytes multiplies blocks of 64 on a CPU
    wide = str(tiny.save_llava(tmp_path / "model", hidden_size=64, intermediate_size=128))
    flags = ("--model_path", wide, "--device", "cpu")
    rows = answers(world, tmp_path / "a.jsonl", *flags, "--load_4bit")
    assert any(isinstance(module, bnb.nn.Linear4bit) for module in loaded[0].modules())
    assert all(row["metadata"]["bits"] == 4 for row in rows)
    with pytest.raises(AssertionError):
        answers(world, tmp_path / "a.jsonl", *flags)
    assert_names(capsys.readouterr().err, "bits was 4", "None")


def test_a_device_that_is_not_here_or_is_a_launchers_to_give_ends_in_one_line(
    world, tmp_path, capsys, monkeypatch
):
    with pytest.raises(AssertionError):
        answers(world, tmp_path / "a.jsonl", "--device", "typewriter")
    assert_names(capsys.readouterr().err, "error: --device typewriter")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AssertionError):
        answers(world, tmp_path / "a.jsonl", "--device", "cpu")
    assert_names(capsys.readouterr().err, "error: --device: ", "launcher")


def test_compiled_answers_are_the_same_by_two_graphs_without_a_break(world, tmp_path, compiled):
    """One graph is the tower with the projector, the other the decoding, also when progress is watched."""
    plain = answers(world, tmp_path / "plain.jsonl")
    assert compiled == []
    assert answers(world, tmp_path / "compiled.jsonl", "--compile") == plain
    assert len(compiled) == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_beam_search_is_refused_ahead_of_loading(world, tmp_path, loaded, capsys):
    with pytest.raises(AssertionError):
        answers(world, tmp_path / "a.jsonl", "--compile", "--num_beams", "2")
    assert_names(capsys.readouterr().err.splitlines()[-1], "error: --compile ", "--num_beams 1", "2")
    assert loaded == []


def test_attention_that_is_not_here_ends_in_one_line(world, tmp_path, capsys):
    with pytest.raises(AssertionError):
        answers(world, tmp_path / "a.jsonl", "--attn_implementation", "no_such_attention")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert line.startswith("error: --attn_implementation no_such_attention cannot be used")


@pytest.mark.parametrize("method", ["attention", "rollout"])
def test_pictures_are_drawn_by_a_compiled_model_and_in_bf16(world, tmp_path, compiled, method):
    def draw(name, *more):
        argv = ["--model_path", str(world / "model"), "--image_path", str(world / "1.png"), *more]
        argv += ["--text", "what?", "--max_new_tokens", "4", "--method", method]
        assert heatmap.main([*argv, "--output_dir", str(tmp_path / name)]) == 0
        return np.load(tmp_path / name / "heatmap.npz")

    plain, fast, half = draw("plain"), draw("compiled", "--compile"), draw("half", "--dtype", "bf16")
    assert (
        len(compiled) == {"attention": 1, "rollout": 2}[method]
    )  # a step whose attention is read is not compiled
    assert fast["answer"] == plain["answer"]
    np.testing.assert_allclose(fast["weights"], plain["weights"], atol=1e-6)
    assert 0 < abs(half["weights"] - plain["weights"]).max() < plain["weights"].max() / 4


class Stop(Exception):
    """Raised where a command would load its model."""


def picture(command, *more):
    argv = ["--model_path", "{model}", "--image_path", "{picture}", "--output_dir", "{out}", *more]
    return command.main, argv


TALK = ["--model-path", "{model}"]
ASK = ["--model-path", "{model}", "--image-file", "{picture}", "--query", "what?"]
COMMANDS = {
    "run_llava": (run_llava.main, ASK, ALL),
    "api": (lambda argv: api.load_app(api.build_parser().parse_args(argv)), TALK, ALL),
    "cli": (cli.main, TALK, ALL),
    "web": (web.main, TALK, ALL),
    "heatmap": (*picture(heatmap, "--text", "what?"), ALL),
    "distribution": (*picture(distribution, "--text", "what?"), ALL),
    "prism": (*picture(prism), ALL[:-1]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_loads_as_its_flags_say(world, tmp_path, monkeypatch, name):
    if name in ("api", "web"):
        pytest.importorskip({"api": "fastapi", "web": "gradio"}[name])

    def load(*args, **kwargs):
        seen.append(kwargs)
        raise Stop

    seen: list[dict] = []
    monkeypatch.setattr(llava.model.builder, "load_pretrained_model", load)
    main, argv, flags = COMMANDS[name]
    places = {"model": world / "model", "picture": world / "1.png", "out": tmp_path}
    with pytest.raises(Stop):
        main([*(word.format(**places) for word in argv), *flags])
    assert seen == [
        {
            "device": "cpu",
            "load_4bit": True,
            "load_8bit": False,
            "torch_dtype": torch.bfloat16,
            "attn_implementation": "eager",
            "compile_vision": "--compile" in flags,
        }
    ]


def test_the_one_question_command_compiles_its_decoding_too(world, compiled, capsys):
    argv = ["--model-path", str(world / "model"), "--image-file", str(world / "1.png"), "--query", "what?"]
    assert run_llava.main([*argv, "--max_new_tokens", "4"]) == 0
    plain = capsys.readouterr().out
    assert run_llava.main([*argv, "--max_new_tokens", "4", "--compile"]) == 0
    assert capsys.readouterr().out == plain
    assert len(compiled) == 2


def test_the_servers_compile_their_decoding_too(world):
    pytest.importorskip("fastapi")
    app = api.load_app(api.build_parser().parse_args(["--model-path", str(world / "model"), "--compile"]))
    engine = app.state.server.engine
    engine.close()
    assert engine.loaded.compiled
    chat = llava.serve.chat.open_chat(str(world / "model"), device="cpu", compile_vision=True)
    assert chat.loaded.compiled
