"""The command line that each training script passes to its launcher on a laptop, a node and several nodes.

The shells are the real ones; `python`, `nvidia-smi` and `scontrol` are stand-ins.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
from messages import assert_names

from llava.benchmark.speed.shapes import SHAPES
from llava.errors import UserError
from llava.model.multimodal_projector.builder import projector_class
from llava.model.multimodal_projector.visualprism_v2 import VisualPrismV2
from llava.train.arguments import parse, projector_rate
from llava.train.recipe import decide

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIGS = {"zero2.json", "zero3.json", "zero3_offload.json"}

# Answers llava.train.choose_recipe with $RECIPE, or as on a machine without torch's GPUs. It starts without
# site-packages, which would cost more than all that it does.
PYTHON = f"""#!{sys.executable} -S
import json, os, sys
if sys.argv[1:3] == ["-m", "llava.train.choose_recipe"]:
    json.dump(sys.argv[3:], open("asked.json", "w"))
    sys.exit(print(*os.environ["RECIPE"].split(), sep="\\n") if "RECIPE" in os.environ else 1)
json.dump(sys.argv[1:], open("argv.json", "w"))
"""
NVIDIA_SMI = """#!/bin/sh
[ "$GPUS" -gt 0 ] || exit 9
for i in $(seq "$GPUS"); do case "$1" in
  --list-gpus) echo "GPU $i: stub (UUID: GPU-$i)"; echo "  MIG 1g.10gb Device 0: (UUID: MIG-$i)" ;;
  *) echo "${CAPABILITY:-9.0}" ;;
esac; done
"""
SCONTROL = "#!/bin/sh\n[ \"$*\" = 'show hostnames node[7-8]' ] && printf 'node7\\nnode8\\n'\n"

PLACES = {  # name: (environment, number of devices)
    "cpu": ({"GPUS": "0"}, 1),
    "one GPU": ({"GPUS": "1"}, 1),
    "eight GPUs": ({"GPUS": "8"}, 8),
    "two nodes": ({"GPUS": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node7"}, 16),
    "SLURM": (
        {
            "GPUS": "8",
            "SLURM_STEP_ID": "0",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_STEP_NUM_NODES": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NODELIST": "node[7-8]",
            "SLURM_NODEID": "1",
        },
        16,
    ),
    "hostfile": ({"GPUS": "8", "HOSTFILE": "hosts"}, 16),
}

# For each script: global batch, ZeRO stage on GPUs, data file, and other flags of this script
MIX, TASK = "llava_v1_5_mix665k.json", "task/train.json"
LORA = {"lora_enable": True, "lora_r": 128, "lora_alpha": 256, "learning_rate": 2e-4, "mm_projector_lr": 2e-5}
CAPTIONS = {"tune_mm_mlp_adapter": True, "version": "plain"}
HD = {"image_aspect_ratio": "slice", "patch_num": 9, "model_max_length": 4096}
OWN = {"vision_tower": None, "mm_projector_type": None, "scale_factor": None, "image_aspect_ratio": None}
RECIPES = {
    "v1_5/pretrain": (256, "zero2", "blip_laion_cc_sbu_558k.json", {**CAPTIONS, "learning_rate": 1e-3}),
    "v1_5/finetune": (128, "zero3", MIX, {"learning_rate": 2e-5, "image_aspect_ratio": "pad"}),
    "v1_5/finetune_lora": (128, "zero3", MIX, LORA),
    "v1_5/finetune_task": (128, "zero3", TASK, {**OWN, "learning_rate": 2e-5}),
    "v1_5/finetune_task_lora": (128, "zero3", TASK, {**OWN, **LORA}),
    "v1_5/pretrain_hd": (256, "zero2", "blip_laion_cc_sbu_558k.json", {**CAPTIONS, **HD}),
    "v1_5/finetune_hd": (128, "zero3", MIX, {**HD, "learning_rate": 2e-5}),
    "pretrain": (128, "zero2", "LLaVA-CC3M-Pretrain-595K/chat.json", {**CAPTIONS, "learning_rate": 2e-3}),
    "finetune": (128, "zero2", "llava_instruct_80k.json", {"num_train_epochs": 1}),
    "finetune_full_schedule": (32, "zero2", "llava_instruct_150k.json", {"num_train_epochs": 3}),
    "finetune_lora": (
        128,
        "zero2",
        "llava_instruct_80k.json",
        {"lora_enable": True, "lora_r": 64, "bits": 16},
    ),
    "finetune_qlora": (128, "zero2", "llava_instruct_80k.json", {"lora_enable": True, "bits": 4}),
}


@pytest.fixture
def folder(tmp_path):
    """A folder to run scripts in, with stand-ins for the commands that they start, and a hostfile."""
    (tmp_path / "bin").mkdir()
    for command, text in {"python": PYTHON, "nvidia-smi": NVIDIA_SMI, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / command).write_text(text)
        (tmp_path / "bin" / command).chmod(0o755)
    (tmp_path / "hosts").write_text("# head node first\nnode7 slots=8\nnode8 slots=8\n")
    return tmp_path


def environment(folder: Path, **variables) -> dict[str, str]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "VIRTUAL_ENV": str(folder), "HOME": str(folder), "GPUS": "0", **variables}


def run(folder: Path, script: str, *arguments: str, **variables) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", ROOT / "scripts" / f"{script}.sh", *arguments],
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=300,
    )


def launched(folder: Path, script: str, *arguments: str, **variables):
    """Run a script; returns (the words before train_mem.py, its flags, the output)."""
    done = run(folder, script, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    argv = json.loads((folder / "argv.json").read_text())
    entry = argv.index(str(ROOT / "llava/train/train_mem.py"))
    return argv[:entry], argv[entry + 1 :], done.stdout


def without_deepspeed(flags: list[str]) -> tuple[list[str], str | None]:
    """The flags without DeepSpeed's, which need the package, and the name of its configuration."""
    if "--deepspeed" not in flags:
        return flags, None
    index = flags.index("--deepspeed")
    return flags[:index] + flags[index + 2 :], Path(flags[index + 1]).name


def parsed(flags: list[str]) -> dict:
    """All arguments by their names."""
    return {name: value for part in parse(without_deepspeed(flags)[0]) for name, value in vars(part).items()}


@pytest.mark.parametrize(
    ("script", "place"),
    [
        *product(RECIPES, ["cpu", "two nodes"]),
        *product(["v1_5/finetune", "finetune"], ["one GPU", "eight GPUs", "SLURM", "hostfile"]),
    ],
)
def test_a_script_keeps_its_recipe_wherever_it_runs(folder, script, place):
    variables, devices = PLACES[place]
    global_batch, zero, data, expected = RECIPES[script]
    # Without a template train_mem.py takes the one that the model was trained with
    expected = {"version": None, **expected}
    _, flags, printed = launched(folder, script, **variables)
    config = without_deepspeed(flags)[1]
    assert config == (None if place == "cpu" else f"{zero}.json")
    arguments = parsed(flags)
    per_step = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
    assert per_step * devices == global_batch
    assert f"batch:  {global_batch} = " in printed
    (data_path,) = arguments["data_path"]
    assert data_path.startswith("playground/data/")
    assert data_path.endswith(data)
    assert {name: arguments[name] for name in expected} == expected
    assert arguments["output_dir"].startswith("playground/checkpoints/")
    assert arguments["bf16"] == (place != "cpu")


@pytest.mark.parametrize(
    ("variables", "rate"),
    [
        ({}, 1e-3),  # the published settings
        ({"PROJECTOR_TYPE": "tokenpacker"}, 1e-3),
        ({"PROJECTOR_TYPE": "visualprism_v2"}, VisualPrismV2.highest_rate),
        ({"PROJECTOR_TYPE": "visualprism_v2", "LEARNING_RATE": "5e-5"}, 5e-5),
        ({"PROJECTOR_TYPE": "visualprism_v2", "LEARNING_RATE": "5e-4"}, 5e-4),
        ({"PROJECTOR_TYPE": "visualprism_v2", "PROJECTOR_LR": "2e-4"}, 2e-4),
    ],
)
def test_a_projector_learns_at_a_rate_that_suits_it_unless_one_is_asked_for(folder, variables, rate):
    model, _, training = parse(launched(folder, "v1_5/pretrain", **variables)[1])
    assert projector_rate(training, projector_class(model.mm_projector_type)) == rate


def test_a_rate_is_a_number_or_auto(folder):
    with pytest.raises(UserError, match="--mm_projector_lr.*auto.*'fast'"):
        parse(launched(folder, "v1_5/pretrain", PROJECTOR_LR="fast")[1])


def test_each_script_has_a_recipe_here():
    training = {
        path.relative_to(ROOT / "scripts").with_suffix("").as_posix()
        for path in (ROOT / "scripts").rglob("*.sh")
        if "launch.sh" in path.read_text() and path.name not in ("launch.sh", "common.sh", "quickstart.sh")
    }
    assert training == set(RECIPES)
    for _, zero, _, _ in RECIPES.values():
        assert json.loads((ROOT / "scripts" / f"{zero}.json").read_text())


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("cpu", ""),
        ("one GPU", "-m torch.distributed.run --standalone --nproc_per_node 1"),
        ("eight GPUs", "-m torch.distributed.run --standalone --nproc_per_node 8"),
        (
            "two nodes",
            "-m torch.distributed.run --nnodes 2 --node_rank 1 --master_addr node7 --master_port 29500 "
            "--nproc_per_node 8",
        ),
        (
            "SLURM",
            "-m torch.distributed.run --nnodes 2 --node_rank 1 --master_addr node7 --master_port 23456 "
            "--nproc_per_node 8",
        ),
        ("hostfile", "-m deepspeed.launcher.runner --hostfile hosts --master_port 29500"),
    ],
)
def test_launcher_of_each_place(folder, place, words):
    assert " ".join(launched(folder, "v1_5/finetune", **PLACES[place][0])[0]) == words


def test_only_the_visible_gpus_are_used(folder):
    ahead, flags, _ = launched(folder, "v1_5/finetune", GPUS="8", CUDA_VISIBLE_DEVICES="2,5")
    assert ahead[-2:] == ["--nproc_per_node", "2"]
    assert parsed(flags)["gradient_accumulation_steps"] == 4
    for none in ("", "-1"):
        ahead, flags, _ = launched(folder, "v1_5/finetune", GPUS="8", CUDA_VISIBLE_DEVICES=none)
        assert (ahead, "--deepspeed" in flags) == ([], False)


def test_several_cpu_processes_and_deepspeed_where_asked_for(folder):
    ahead, flags, _ = launched(folder, "v1_5/pretrain", NUM_PROCESSES="2")
    assert ahead == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert "--deepspeed" not in flags
    offload = str(ROOT / "scripts/zero3_offload.json")
    ahead, flags, _ = launched(folder, "v1_5/pretrain", DEEPSPEED_CONFIG=offload)
    assert ahead[-2:] == ["--nproc_per_node", "1"]
    assert without_deepspeed(flags)[1] in CONFIGS
    ahead, flags, _ = launched(folder, "v1_5/pretrain", GPUS="4", DEEPSPEED_CONFIG="none")
    assert ahead[-2:] == ["--nproc_per_node", "4"]
    assert "--deepspeed" not in flags


def test_precision_follows_the_gpu(folder):
    assert "--bf16" in launched(folder, "v1_5/finetune", GPUS="1")[1]
    assert "--fp16" in launched(folder, "v1_5/finetune", GPUS="1", CAPABILITY="7.5")[1]
    assert parsed(launched(folder, "v1_5/finetune", GPUS="1", PRECISION="fp32")[1])["bf16"] is False
    assert_names(run(folder, "v1_5/finetune", PRECISION="int8").stderr, "PRECISION", "bf16", "'int8'")


@pytest.mark.parametrize("script", ["v1_5/finetune_lora", "v1_5/finetune_task_lora"])
def test_quantised_weights_are_not_dealt_out_by_zero_3(folder, script):
    assert without_deepspeed(launched(folder, script, "--bits", "4", GPUS="8")[1])[1] == "zero2.json"


@pytest.mark.parametrize("script", ["v1_5/finetune", "v1_5/finetune_lora", "v1_5/finetune_hd", "finetune"])
def test_stage_2_goes_on_from_what_stage_1_left(folder, script):
    first = script.split("_lora")[0].replace("finetune", "pretrain")
    for variables in ({}, {"RUN_NAME": "mine"}):
        stage1 = parsed(launched(folder, first, **variables)[1])
        stage2 = parsed(launched(folder, script, **variables)[1])
        assert stage2["pretrain_mm_mlp_adapter"] == f"{stage1['output_dir']}/mm_projector.bin"
        assert stage2["output_dir"] != stage1["output_dir"]
        for name in ("mm_projector_type", "vision_tower", "scale_factor", "patch_num"):
            assert stage2[name] == stage1[name]


def test_flags_after_the_script_and_variables_ahead_of_it_win(folder):
    arguments = parsed(
        launched(
            folder,
            "v1_5/finetune_lora",
            *("--lora_r", "8", "--data_path", "a b.json", "c.json", "--data_weights", "1", "0.5"),
            **{"SCALE_FACTOR": "3", "IMAGE_SIZE": "672", "OUTPUT_DIR": "my run", "MODEL_MAX_LENGTH": "4096"},
        )[1]
    )
    assert (arguments["lora_r"], arguments["data_path"]) == (8, ["a b.json", "c.json"])
    assert (arguments["scale_factor"], arguments["mm_vision_image_size"]) == (3, 672)
    assert (arguments["output_dir"], arguments["model_max_length"]) == ("my run", 4096)


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (3, 2), (96, 8)])
def test_data_workers_follow_from_the_processors_unless_they_are_given(folder, monkeypatch, cores, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(cores))
    assert parsed(launched(folder, "finetune")[1])["dataloader_num_workers"] == expected
    assert parsed(launched(folder, "finetune", NUM_WORKERS="7")[1])["dataloader_num_workers"] == 7


def test_packing_takes_the_place_of_grouping(folder):
    plain, packed = (parsed(launched(folder, "v1_5/finetune", PACKING=p)[1]) for p in ("False", "True"))
    assert (plain["packing"], plain["group_by_modality_length"]) == (False, True)
    assert (packed["packing"], packed["group_by_modality_length"]) == (True, False)


@pytest.mark.parametrize("script", ["v1_5/pretrain", "finetune_lora"])
def test_a_template_that_is_asked_for_is_taken(folder, script):
    assert parsed(launched(folder, script, VERSION="qwen_2")[1])["version"] == "qwen_2"
    assert parsed(launched(folder, script, "--version", "mpt")[1])["version"] == "mpt"


def test_sinkhorn_needs_one_flag_and_has_the_published_settings(folder):
    for script, settings in {
        "v1_5/pretrain": (0.5, 2.2, 0.12, 16, 768),
        "v1_5/finetune": (0.2, 2.0, 0.1, 20, 768),
    }.items():
        assert parsed(launched(folder, script)[1])["use_sinkhorn_lsd"] is False
        arguments = parsed(launched(folder, script, "--use_sinkhorn_lsd")[1])
        names = ("beta", "tau_sd", "lambda", "iters", "max_tokens")
        assert tuple(arguments[f"sinkhorn_{name}"] for name in names) == settings


# ---- The memory ----


def test_on_gpus_memory_decides_zero_and_recomputation(folder):
    recipe = "--gradient_checkpointing True --recompute_above 8565 --deepspeed scripts/zero2.json"
    _, flags, printed = launched(folder, "finetune", "--lora_r", "8", GPUS="8", RECIPE=recipe)
    ahead, _, behind = " ".join(flags).partition(recipe)
    assert ahead
    assert behind.endswith(
        "mm_projector.bin --lora_r 8"
    )  # the flags of a script, and then the user's, come last and take effect
    assert "memory:" not in printed
    asked = json.loads((folder / "asked.json").read_text())
    expected = ["--num_gpus", "8", "--deepspeed", "auto", "--gradient_checkpointing", "auto"]
    assert asked[:6] == expected
    assert asked[6:] == [*ahead.split(), *behind.split()]


def test_what_is_given_is_not_asked_for(folder):
    given = {"GRADIENT_CHECKPOINTING": "False", "DEEPSPEED_CONFIG": str(ROOT / "scripts/zero2.json")}
    _, flags, _ = launched(folder, "v1_5/finetune", GPUS="8", **given)
    assert not (folder / "asked.json").exists()
    assert without_deepspeed(flags)[1] == "zero2.json"
    assert parsed(flags)["gradient_checkpointing"] is False
    launched(
        folder, "v1_5/finetune", GPUS="8", DEEPSPEED_CONFIG="none", RECIPE="--gradient_checkpointing True"
    )
    asked = json.loads((folder / "asked.json").read_text())
    assert asked[2:6] == ["--deepspeed", "none", "--gradient_checkpointing", "auto"]


def test_without_a_budget_a_script_keeps_its_own_stage(folder):
    _, flags, printed = launched(folder, "v1_5/finetune", GPUS="8", GRADIENT_CHECKPOINTING="False")
    assert "memory: no budget was computed; DeepSpeed zero3.json, gradient checkpointing False" in printed
    assert parsed(flags)["gradient_checkpointing"] is False


def test_a_cpu_has_no_budget(folder):
    _, flags, _ = launched(folder, "v1_5/finetune")
    assert not (folder / "asked.json").exists()
    assert parsed(flags)["gradient_checkpointing"] is True


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory) -> Path:
    """The config.json files of a 7B language model and its tower."""
    shape, folder = SHAPES["7b"], tmp_path_factory.mktemp("vicuna")
    for name, config in {
        "lm": {"model_type": "llama", **shape.language_config()},
        "tower": shape.tower,
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("script", "variables", "place", "zero", "recomputes"),
    [
        ("v1_5/finetune", {}, (8, 81559), "zero2", "above"),
        ("v1_5/finetune", {"PROJECTOR_TYPE": "mlp2x_gelu"}, (8, 81559), "zero2", "all"),
        ("v1_5/finetune", {}, (8, 40960), "zero3", "all"),
        ("v1_5/finetune", {}, (1, 81559), "zero3_offload", "all"),
        ("v1_5/finetune_lora", {}, (1, 81559), "zero2", "above"),
        ("v1_5/finetune", {"BATCH_SIZE": "1"}, (64, 143771), "zero2", "none"),
    ],
)
def test_the_recipe_of_a_script_is_taken_by_train_mem(
    folder, vicuna, script, variables, place, zero, recomputes
):
    """The recipe parses the flags that launch.sh passes, and train_mem.py parses the recipe's flags."""
    given = {"MODEL": str(vicuna / "lm"), "VISION_TOWER": str(vicuna / "tower"), **variables}
    launched(folder, script, GPUS="1", **given)
    asked = json.loads((folder / "asked.json").read_text())
    decision = decide([*asked, "--num_gpus", str(place[0]), "--gpu_memory_mib", str(place[1])])
    rest, config = without_deepspeed(decision.flags())
    page = "\n".join(decision.lines())
    assert config == f"{zero}.json"
    assert f"{zero}: weights " in page
    required = ["--model_name_or_path", "lm", "--data_path", "data.json", "--output_dir", "out"]
    training = parse([*required, *rest])[2]
    assert training.gradient_checkpointing == (recomputes != "none")
    assert bool(training.recompute_above) == (recomputes == "above")
    assert ("keep their activations" in page) == (recomputes == "above")
    assert ("GiB of main memory" in page) == (zero == "zero3_offload")


# ---- The batch ----


def test_accumulation_that_is_given_wins_over_the_global_batch(folder):
    variables = {"GRAD_ACCUM": "3", "BATCH_SIZE": "5", "GLOBAL_BATCH_SIZE": "128", "GPUS": "2"}
    _, flags, printed = launched(folder, "v1_5/finetune", **variables)
    assert parsed(flags)["gradient_accumulation_steps"] == 3
    assert "30 = 5 a device x 2 devices x 3 accumulated" in printed


def test_more_devices_than_the_global_batch_needs_get_smaller_batches(folder):
    variables = {"GPUS": "8", "NNODES": "8", "NODE_RANK": "0", "MASTER_ADDR": "a", "BATCH_SIZE": "4"}
    _, flags, printed = launched(folder, "v1_5/finetune", **variables)
    assert parsed(flags)["per_device_train_batch_size"] == 2
    assert "BATCH_SIZE=4 on 64 devices is more than GLOBAL_BATCH_SIZE=128; reduced to 2" in printed


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"GPUS": "3"}, ("BATCH_SIZE=16 x 3 devices = 48", "GLOBAL_BATCH_SIZE=144 or 96")),
        ({"BATCH_SIZE": "24"}, ("GLOBAL_BATCH_SIZE=144 or 120, or BATCH_SIZE=16",)),
        ({"BATCH_SIZE": "100", "GPUS": "3"}, ("GLOBAL_BATCH_SIZE=300.",)),
        ({"BATCH_SIZE": "0"}, (" BATCH_SIZE ", "'0'")),
        ({"GLOBAL_BATCH_SIZE": "many"}, ("GLOBAL_BATCH_SIZE ", "'many'")),
        ({"NUM_PROCESSES": "4", "GPUS": "2"}, ("NUM_PROCESSES=4", "2 GPUs")),
        ({"NNODES": "2"}, ("NNODES=2 ", "NODE_RANK (0 to 1)", "MASTER_ADDR")),
        ({"NNODES": "2", "HOSTFILE": "hosts"}, ("HOSTFILE and NNODES=2 ",)),
        ({"HOSTFILE": "nowhere"}, ("HOSTFILE=nowhere ", "'NAME slots=GPUS'")),
        ({"SLURM_JOB_NUM_NODES": "2"}, ("srun --ntasks-per-node=1",)),
        ({**PLACES["SLURM"][0], "SLURM_STEP_NUM_TASKS": "16"}, ("use --ntasks-per-node=1",)),
    ],
)
def test_settings_that_cannot_run_are_refused_with_the_remedy(folder, variables, parts):
    done = run(folder, "v1_5/finetune", **variables)
    assert done.returncode == 2
    assert_names(done.stderr, *parts)
    assert not (folder / "argv.json").exists()


def test_dry_run_prints_a_command_that_can_be_pasted_and_starts_nothing(folder):
    started = launched(folder, "v1_5/finetune", "--run_name", "two words", GPUS="8")
    (folder / "argv.json").unlink()
    done = run(folder, "v1_5/finetune", "--run_name", "two words", GPUS="8", DRY_RUN="1")
    assert not (folder / "argv.json").exists()
    command = done.stdout.splitlines()[-1]
    subprocess.run(["bash", "-c", command], cwd=folder, env=environment(folder), check=True)
    argv = json.loads((folder / "argv.json").read_text())
    assert argv == [*started[0], str(ROOT / "llava/train/train_mem.py"), *started[1]]


def test_python_names_the_interpreter(folder):
    shutil.move(folder / "bin" / "python", folder / "other")
    launched(folder, "v1_5/finetune", GPUS="2", PYTHON=str(folder / "other"))


# ---- SIGTERM ----

TORCHRUN = """#!/bin/sh
[ "$2" != llava.train.choose_recipe ] || exit 1
sh -c 'trap "echo > saved; exit 143" TERM; echo > up; while :; do sleep 0.05; done' &
trap 'kill -KILL $!; exit 9' TERM  # as torchrun would, after a while
wait
exit 1
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_launch_lets_its_processes_save_and_ends_with_143(folder, sent):
    (folder / "bin" / "python").write_text(TORCHRUN)
    script = ROOT / "scripts" / "v1_5" / "finetune.sh"
    started = subprocess.Popen(
        ["bash", script],
        cwd=folder,
        env=environment(folder, GPUS="2"),
        # a background job starts with SIGINT ignored, and bash cannot trap ignored signals
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (folder / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started.send_signal(sent)
    assert started.wait(timeout=120) == 143
    assert (folder / "saved").exists()


def test_a_launch_that_fails_keeps_its_exit_code(folder):
    (folder / "bin" / "python").write_text("#!/bin/sh\nexit 7\n")
    assert run(folder, "v1_5/finetune").returncode == 7
    assert run(folder, "v1_5/finetune", GPUS="2").returncode == 7
