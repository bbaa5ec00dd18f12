"""How a model is loaded: its dtype, the effect of the flags, and attention that is not available."""

import json
from argparse import Namespace
from contextlib import nullcontext

import pytest
import tiny
import torch

import llava.loading
import llava.model.builder
from llava.command import Parser
from llava.errors import UserError
from llava.inference import LOADING, add_flags, check_device, loading_options
from llava.loading import default_dtype, dtype_flag, has_bf16
from llava.model.builder import load_pretrained_model

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FLASH = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}


def options(*argv):
    parser = Parser()
    add_flags(parser, *LOADING, "--compile")
    return loading_options(parser.parse_args(argv))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("saved", "device", "gpu_has_bf16", "expected"),
    [
        ("bfloat16", "cpu", True, FP32),
        ("float16", "cpu", True, FP32),
        ("float32", "cpu", True, FP32),
        ("bfloat16", "cuda", True, BF16),
        ("float16", "cuda", True, FP16),
        ("torch.float16", "cuda:1", True, FP16),
        ("float32", "cuda", True, BF16),
        (None, "cuda", True, BF16),
        ("bfloat16", "cuda", False, FP16),
        ("float16", "cuda", False, FP16),
        ("float32", "cuda", False, FP16),
        (None, "cuda", False, FP16),
        ("bfloat16", "mps", True, BF16),
        ("float32", "mps", False, FP16),
    ],
)
def test_the_dtype_follows_the_checkpoint_and_the_device(
    monkeypatch, key, saved, device, gpu_has_bf16, expected
):
    monkeypatch.setattr(llava.loading, "has_bf16", lambda device: gpu_has_bf16)
    assert default_dtype({} if saved is None else {key: saved}, device) == expected
    assert default_dtype({} if saved is None else {key: saved}, torch.device(device)) == expected


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("itself", [True, False])
def test_a_gpu_that_emulates_bf16_does_not_have_it(monkeypatch, itself, emulated):
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    supported = {True: itself or emulated, False: itself}
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported[including_emulation]
    )
    assert has_bf16("cuda:0") == itself


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], (None, None, False)),
        (["--dtype", "auto", "--attn_implementation", "auto"], (None, None, False)),
        (["--dtype", "bf16"], (BF16, None, False)),
        (["--dtype", "fp16", "--attn-implementation", "eager"], (FP16, "eager", False)),
        (["--dtype", "fp32", "--attn_implementation", "a/kernel", "--compile"], (FP32, "a/kernel", True)),
        (["--load-4bit"], (None, None, False, True, False)),
        (["--load_8bit"], (None, None, False, False, True)),
    ],
)
def test_flags_become_what_load_pretrained_model_takes(argv, expected):
    names = ("torch_dtype", "attn_implementation", "compile_vision", "load_4bit", "load_8bit")
    assert options(*argv) == dict(zip(names, (*expected, False, False)[:5], strict=True))


def test_a_model_is_loaded_in_4_bits_or_in_8():
    with pytest.raises(UserError, match="^--load-4bit and --load-8bit"):
        options("--load-4bit", "--load-8bit")


def test_flags_that_a_caller_leaves_out_are_as_by_default():
    assert loading_options(Namespace()) == options()


def test_a_device_that_is_not_here_is_refused_by_name():
    with pytest.raises(UserError, match="--device typewriter"):
        check_device("typewriter")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cuda"):
            check_device("cuda")
    check_device("cpu")


def test_each_dtype_has_the_flag_that_asks_for_it():
    for flag in ("bf16", "fp16", "fp32"):
        assert dtype_flag(options("--dtype", flag)["torch_dtype"]) == flag


@pytest.mark.parametrize("name", FLASH)
def test_flash_attention_without_its_package_is_refused_by_its_flag(monkeypatch, name):
    there = set()
    monkeypatch.setattr(llava.loading, "find_spec", lambda module: module in there or None)
    message = f"^--attn_implementation {name}: {FLASH[name]} is not installed; install it with [^\n]*sdpa.$"
    with pytest.raises(UserError, match=message):
        options("--attn_implementation", name)
    for module in (llava.loading.FLASH_PACKAGES[name][0], "kernels"):
        there = {module}
        assert options("--attn_implementation", name)["attn_implementation"] == name
    with pytest.raises(UserError, match=f"--attn_implementation {name}.*--dtype"):
        options("--attn_implementation", name, "--dtype", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("loading") / "model")


@pytest.fixture
def saved_in(folder):
    """Changes the dtype of the weights in config.json."""

    def rewrite(dtype: str) -> str:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
        return str(folder)

    yield rewrite
    rewrite("float32")


# The device "meta" stands for a GPU that has bf16: it computes nothing
@pytest.mark.parametrize(
    ("saved", "device", "asked", "expected"),
    [
        ("bfloat16", "cpu", None, FP32),
        ("bfloat16", "cpu", "auto", BF16),
        ("bfloat16", "cpu", FP16, FP16),
        ("bfloat16", "meta", None, BF16),
        ("float16", "meta", None, FP16),
        ("float32", "meta", None, BF16),
        ("float32", "meta", FP32, FP32),
    ],
)
def test_a_model_is_loaded_in_the_dtype_of_the_rule(saved_in, saved, device, asked, expected):
    model = load_pretrained_model(saved_in(saved), device=device, torch_dtype=asked)[1]
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


@pytest.mark.parametrize(
    ("saved", "device", "asked", "expected"),
    [
        ("bfloat16", "meta", None, BF16),
        ("float16", "meta", None, FP16),
        ("float32", "cpu", None, FP32),
        ("float16", "meta", BF16, BF16),
        ("bfloat16", "meta", "auto", BF16),
        ("bfloat16", "meta", "float16", FP16),
    ],
)
def test_quantised_weights_are_computed_with_in_that_dtype(
    saved_in, monkeypatch, saved, device, asked, expected
):
    seen = []
    monkeypatch.setattr(llava.model.builder, "quantization", lambda bits, dtype: seen.append(dtype) or {})
    load_pretrained_model(saved_in(saved), load_4bit=True, device=device, torch_dtype=asked)
    assert seen == [expected]


@pytest.mark.parametrize("name", ["no_such_attention", "kernels-community/no-such-kernel", *FLASH])
def test_attention_that_transformers_refuses_is_said_in_one_line_that_names_the_flag(folder, name):
    if name in FLASH and torch.cuda.is_available():
        pytest.skip("it may be here")
    with pytest.raises(UserError, match=f"^--attn_implementation {name} cannot be used") as error:
        load_pretrained_model(str(folder), attn_implementation=name)
    assert "\n" not in str(error.value)


def test_attention_that_a_family_lacks_is_refused_likewise(tmp_path):
    tiny.save_language_model(tmp_path, "mpt")
    with pytest.raises(UserError, match="^--attn_implementation sdpa .*cannot be used"):
        load_pretrained_model(str(tmp_path), attn_implementation="sdpa")


def test_the_tower_is_compiled_where_that_is_asked_for_and_there_is_one(folder, tmp_path, bpe_tokenizer):
    for asked in (False, True):
        model = load_pretrained_model(str(folder), device="cpu", compile_vision=asked)[1]
        assert (model._compiled_encode is not None) == asked
    tiny.save_language_model(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    assert load_pretrained_model(str(tmp_path), compile_vision=True)[1]._compiled_encode is None
