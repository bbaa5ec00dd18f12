"""llava/published: every name that other scripts call exists, and does what its entry defines."""

from pathlib import Path

import pytest

from llava.published import COMMANDS, gone

ROOT = Path(__file__).parents[2]
GONE = {command.module for command in gone.COMMANDS}
FILE = '''"""A published command name; llava/published defines what it runs."""

from llava.published import COMMANDS

if __name__ == "__main__":
    raise SystemExit(COMMANDS["{name}"].main())
'''


def file_of(name: str) -> Path:
    return ROOT / (name if name.endswith(".py") else name.replace(".", "/") + ".py")


def test_the_published_names_are_all_here():
    evaluation = "docvqa easy_vqa ocr_bench pope science_qa textvqa"
    names = {f"llava.eval.eval_{name}" for name in evaluation.split()}
    names |= {
        f"llava.eval.model_vqa{name}" for name in ("", "_loader", "_loader_pope", "_mmbench", "_science")
    }
    serving = "controller gradio_web_server model_worker sglang_worker"
    names |= {f"llava.serve.{name}" for name in serving.split()}
    names |= {f"scripts/convert_{name}_for_eval.py" for name in ("docvqa", "gqa", "mmvet")}
    names |= {f"scripts/convert_{name}_for_submission.py" for name in ("mmbench", "seed", "vizwiz", "vqav2")}
    assert COMMANDS.keys() == names


@pytest.mark.parametrize("name", COMMANDS)
def test_a_published_name_is_a_file_that_calls_its_own_entry_and_does_nothing_else(name):
    assert file_of(name).read_text() == FILE.format(name=name)


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - GONE))
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        COMMANDS[name].main(["--help"])
    program = name if name.endswith(".py") else f"-m {name}"
    assert f"usage: python {program} [-h]" in " ".join(capsys.readouterr().out.split())


def test_a_folder_without_answers_is_refused(tmp_path, capsys):
    argv = ["--annotation-file", "annotations.json", "--result-dir", str(tmp_path)]
    assert COMMANDS["llava.eval.eval_textvqa"].main(argv) == 1
    assert f"--result-dir {tmp_path} has no *.jsonl" in capsys.readouterr().err
