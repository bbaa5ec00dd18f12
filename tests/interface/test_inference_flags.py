"""Options may have hyphens or underscores; the flags of a model are the same in every command."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from llava.__main__ import COMMANDS as NAMES
from llava.command import Parser
from llava.inference import FLAGS, LOADING, MODEL

ROOT = Path(__file__).parents[2]
# They use transformers' HfArgumentParser, which has the same rule, or have no flags, or import nothing
# of llava
OTHERWISE = {
    "scripts/measure.py",
    *("llava.train.train_mem", "llava.train.choose_recipe", "llava.benchmark.preflight.work"),
    *(f"llava.serve.{name}" for name in ("controller", "gradio_web_server", "model_worker", "sglang_worker")),
}


def name_of(path: Path) -> str:
    """The module after `python -m`, or a script's path."""
    file = path.relative_to(ROOT).as_posix()
    if file.startswith("scripts/"):
        return file
    return file.removesuffix(".py").removesuffix("/__main__").replace("/", ".")


COMMANDS = sorted(
    {
        name_of(path)
        for folder in ("llava", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if path.name == "__main__.py" or '__name__ == "__main__"' in path.read_text()
    }
    - OTHERWISE
)
# Benchmarks build their own models, and the report runs none: their flags with these names are different
WITHOUT_MODELS = ("llava.benchmark", "llava.data", "llava.eval.quickstart_report")
OF_MODELS = [command for command in COMMANDS if not command.startswith(WITHOUT_MODELS)]


class Parsing(Exception):
    """Contains the parser that a command was about to use."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command, which is not run."""

    def stop(parser, args=None, namespace=None):
        raise Parsing(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [command])
        patch.syspath_prepend(ROOT / "scripts")  # as python scripts/NAME.py does
        if command.endswith(".py"):
            run, name = runpy.run_path, str(ROOT / command)
        else:  # the package stays: imported again, it would not have the modules that other code has imported
            package = (ROOT / command.replace(".", "/")).is_dir()
            run, name = runpy.run_module, f"{command}.__main__" if package else command
            patch.delitem(sys.modules, name, raising=False)
        with pytest.raises(Parsing) as stopped:
            run(name, run_name="__main__")
    return stopped.value.args[0]


def parsers_of(command: str) -> list[argparse.ArgumentParser]:
    """The parsers of a command and of its subcommands."""
    parser = parser_of(command)
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(own for action in nested for own in action.choices.values())]


def words_of(action: argparse.Action) -> list[str]:
    """Words that may follow an option and are not its default."""
    if action.nargs == 0:
        return []
    if action.choices:
        return [next(str(choice) for choice in action.choices if choice != action.default)]
    for text in ("3", "vqav2=70"):
        try:
            (action.type or str)(text)
        except argparse.ArgumentTypeError:
            continue
        return [text]
    raise AssertionError(f"{action.option_strings} takes no word that is known here")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_may_be_written_with_hyphens_or_underscores(command):
    for parser in parsers_of(command):
        assert isinstance(parser, Parser)
        for required in (*parser._actions, *parser._mutually_exclusive_groups):
            required.required = False
        for action in parser._actions:
            for flag in (flag for flag in action.option_strings if re.search("[-_]", flag[2:])):
                hyphens, underscores = (f"--{re.sub('[-_]', mark, flag[2:])}" for mark in "-_")
                values = vars(parser.parse_args([hyphens, *words_of(action)]))
                assert vars(parser.parse_args([underscores, *words_of(action)])) == values
                assert values[action.dest] != action.default


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_each_option_once_and_names_its_default(command):
    for parser in parsers_of(command):
        before = parser.format_help()
        with pytest.raises(SystemExit):
            parser.parse_args(["--no-such-option"])  # this makes all spellings known
        assert parser.format_help() == before
        listed = [action.option_strings for action in parser._actions if action.option_strings]
        assert [flags for flags in listed if len(flags) > 1] == [["-h", "--help"]]
        assert "(default: None)" not in before
        assert "(default: False)" not in before


@pytest.mark.parametrize("command", OF_MODELS)
def test_a_flag_of_a_model_is_the_same_in_every_command(command):
    for action in parser_of(command)._actions:
        if action.dest in FLAGS:
            same = argparse.ArgumentParser().add_argument("--flag", **FLAGS[action.dest])
            for part in ("type", "choices", "help", "metavar", "nargs", "required"):
                assert getattr(action, part) == getattr(same, part), (action.option_strings, part)


@pytest.mark.parametrize("command", [c for c in OF_MODELS if c.startswith("llava.")])
def test_a_command_that_takes_a_model_takes_the_flags_of_its_loading(command):
    takes = {action.dest for action in parser_of(command)._actions}
    if "model_path" in takes:
        flags = LOADING if command.endswith(".prism") else MODEL  # it draws, and asks no question
        assert {flag.strip("-").replace("-", "_") for flag in flags} <= takes


def test_there_are_such_commands_in_each_room():
    assert {"llava.eval.run", "llava.eval.model_vqa", "llava.eval.run_llava"} <= set(OF_MODELS)
    assert {"llava.serve.api", "llava.serve.cli", "llava.serve.web"} <= set(OF_MODELS)
    assert {"llava.visualization.heatmap", "llava.visualization.prism"} <= set(OF_MODELS)
    assert "scripts/merge_lora_weights.py" in OF_MODELS


# From LLaVA's documentation and its scripts/v1_5/eval
ANSWERED = "--model-path m --question-file q --answers-file a --temperature 0 --conv-mode vicuna_v1"
PUBLISHED = {
    "llava.eval.model_vqa": f"{ANSWERED} --image-folder i --model-base b --num-chunks 8 --chunk-idx 7 "
    "--top_p 0.9 --num_beams 1",
    "llava.eval.model_vqa_loader": f"{ANSWERED} --image-folder i --num-chunks 8 --chunk-idx 0 "
    "--max_new_tokens 128 --top_p 0.9 --num_beams 1",
    "llava.eval.model_vqa_science": f"{ANSWERED} --image-folder i --single-pred-prompt",
    "llava.eval.model_vqa_mmbench": f"{ANSWERED} --lang cn --single-pred-prompt --all-rounds",
    "llava.eval.run_llava": "--model-path m --model-base b --image-file i.jpg,j.jpg --query q --conv-mode v1 "
    "--sep , --temperature 0.2 --top_p 0.9 --num_beams 1 --max_new_tokens 512",
    "llava.eval.eval_pope": "--annotation-dir a --question-file q --result-file r",
    "llava.eval.eval_textvqa": "--annotation-file a --result-file r",
    "llava.eval.eval_science_qa": "--base-dir b --result-file r --output-file o --output-result p",
    "llava.serve.cli": "--model-path m --model-base b --image-file https://llava-vl.github.io/view.jpg "
    "--device cuda --conv-mode v1 --temperature 0.2 --max-new-tokens 512 --load-4bit --debug",
    "scripts/merge_lora_weights.py": "--model-path m --model-base b --save-model-path s",
    "scripts/extract_mm_projector.py": "--model-path m --output mm_projector.bin",
    "scripts/convert_vqav2_for_submission.py": "--split llava_vqav2_mscoco_test-dev2015 --ckpt c --dir d",
    "scripts/convert_vizwiz_for_submission.py": "--annotation-file a --result-file r --result-upload-file u",
    "scripts/convert_seed_for_submission.py": "--annotation-file a --result-file r --result-upload-file u",
    "scripts/convert_mmbench_for_submission.py": "--annotation-file a --result-dir r --upload-dir u "
    "--experiment e",
    "scripts/convert_gqa_for_eval.py": "--src s --dst d",
    "scripts/convert_mmvet_for_eval.py": "--src s --dst d",
}


@pytest.mark.parametrize("command", PUBLISHED)
def test_llavas_published_command_lines_parse(command):
    words = PUBLISHED[command].split()
    values = vars(parser_of(command).parse_args(words))
    for flag in (word for word in words if word.startswith("--")):
        assert values[flag.strip("-").replace("-", "_")] is not None


def shown() -> list[tuple[str, list[str]]]:
    """(command, its arguments) for each command line in README and docs that a Parser parses."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "visualprism" in words:
                    first = words.index("visualprism")
                    named = NAMES[words[first + 1]]
                    words[first : first + 2] = [named.module, *named.first]
                names = [i for i, word in enumerate(words) if word in COMMANDS]
                found += [(words[i], words[i + 1 :]) for i in names[:1]]
    return found


def test_command_lines_of_the_documentation_parse():
    commands = shown()
    assert len(commands) > 40
    for command, words in commands:
        parser_of(command).parse_args(words)
