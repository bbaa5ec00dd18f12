"""Commands that take a model's folder also take its name on the hub. Here the hub is a filled cache."""

from pathlib import Path

import extract_mm_projector
import huggingface_hub.constants
import merge_lora_weights
import pytest
import tiny
from benchmarks import BUILDERS
from PIL import Image

from llava.command import Parser
from llava.errors import UserError
from llava.eval import run_llava
from llava.eval.records import model_fingerprint
from llava.eval.run import main as evaluate
from llava.eval.session import FLAGS, Session, read_config
from llava.inference import add_flags
from llava.serve.chat import open_chat
from llava.train.saving import save_projector
from llava.visualization import command

MODEL, STAGE1, BASE = "someone/llava-tiny", "someone/llava-tiny-pretrain", "someone/tiny-base"


def publish(cache: Path, name: str) -> Path:
    """Copies a folder to the place where the cache keeps a repository."""
    repository, revision = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    return repository / "snapshots" / revision


@pytest.fixture(scope="module")
def cache(tmp_path_factory, bpe_tokenizer):
    folder = tmp_path_factory.mktemp("hub")
    tiny.save_llava(publish(folder, MODEL), conv_version="qwen_2")
    model = tiny.build(folder / "parts")
    base = publish(folder, BASE)
    tiny.save_language_model(base)
    bpe_tokenizer.save_pretrained(base)
    save_projector(model, publish(folder, STAGE1))
    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    return folder


@pytest.fixture(autouse=True)
def hub(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def session(*argv: str) -> Session:
    parser = Parser()
    add_flags(parser, *FLAGS)
    return Session(parser.parse_args(argv))


@pytest.mark.parametrize("named", ["model", "stage 1 over its base"])
def test_evaluation_reads_settings_and_fingerprints_of_hub_names(cache, named):
    if named == "model":
        settings = session("--model-path", MODEL).settings
        assert settings["conv_mode"] == read_config(MODEL)["conv_version"] == "qwen_2"
        assert settings["base_weights"] is None
    else:
        settings = session("--model-path", STAGE1, "--model-base", BASE).settings
        base = next(cache.glob("models--someone--tiny-base/snapshots/*"))
        assert settings["base_weights"] == model_fingerprint(base)
    name = MODEL if named == "model" else STAGE1
    folder = next(cache.glob(f"models--{name.replace('/', '--')}/snapshots/*"))
    assert settings["weights"] == model_fingerprint(folder) != model_fingerprint(cache)


def ask_once(folder, name, *more):
    """Runs the command that answers one question."""
    flags = ["--image-file", str(folder / "red.png"), "--query", "what?", "--max_new_tokens", "2"]
    return run_llava.answer(run_llava.parse_args(["--model-path", name, *more, *flags]))


def draw(folder, name, *more):
    """Loads a model as all commands that draw do."""
    parser = command.picture_parser("heatmap", "", "", asks=False)
    flags = ["--image_path", str(folder / "red.png"), "--output_dir", "x"]
    return command.load(parser.parse_args(["--model_path", name, *more, *flags]))


def talk(folder, name, *more):
    return open_chat(name, *more[1:])


def extract(folder, name, *more):
    return extract_mm_projector.main(["--model-path", name, "--output", str(folder / name)])


COMMANDS = {"ask": ask_once, "draw": draw, "talk": talk, "extract": extract}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_a_hub_name(cache, name):
    COMMANDS[name](cache, MODEL)


@pytest.mark.parametrize("name", ["ask", "draw", "talk"])
def test_a_command_takes_hub_names_of_a_projector_and_of_its_base(cache, name):
    COMMANDS[name](cache, STAGE1, "--model-base", BASE)


def test_the_evaluation_command_runs_on_a_hub_name(tmp_path, capsys):
    BUILDERS["pope"](tmp_path / "data")
    argv = ["--model-path", MODEL, "--tasks", "pope", "--data-root", str(tmp_path / "data")]
    assert evaluate([*argv, "--output-dir", str(tmp_path / "out"), "--limit", "2"]) == 0
    assert "report:" in capsys.readouterr().out


def test_merging_takes_hub_names(cache):
    with pytest.raises(SystemExit, match=r"--model-path.*adapter_config\.json"):
        merge_lora_weights.main(["--model-path", MODEL, "--save-model-path", str(cache / "merged")])


@pytest.mark.parametrize("flag", ["--model-path", "--model-base"])
def test_a_name_that_is_nowhere_is_named_with_its_flag(flag):
    names = {"--model-path": MODEL, flag: "someone/absent"}
    with pytest.raises(UserError, match=f"^{flag} someone/absent .*hub"):
        session(*(item for pair in names.items() for item in pair))
