"""Fixtures that many tests share: the golden files and real kinds of tokenizer, made without a download."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test accesses a hub

import tiny
from transformers import PreTrainedTokenizerFast

from llava.data.kept import ENVIRONMENT
from llava.model.tokenizer import load_tokenizer

# No test fails because time runs out, since time depends on what else the machine does
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")

SENTENCES = (
    "A chat between a curious user and an artificial intelligence assistant.",
    "What is shown in the image? A red bus stands in front of two white houses.",
    "Count the dogs. There are 12 dogs, and 3 cats!\n\nAnswer the questions.\n",
    "system user assistant USER: ASSISTANT: Human: ###",
    "assistant\n\n\nA list.\n\n\nuser\n\n\nA list.",
)


def pytest_collection_finish() -> None:
    """Exempt what the imports made, some millions of objects, from the garbage collections of each run."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--write-losses", action="store_true", help="write tests/golden/losses anew (test_golden_losses.py)"
    )


@pytest.fixture(scope="session", autouse=True)
def index_folder(tmp_path_factory) -> Path:
    """The folder in which data sets and started processes keep their indices, instead of the user's cache."""
    folder = tmp_path_factory.mktemp("records")
    os.environ[ENVIRONMENT] = str(folder)
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of recorded inputs and outputs; docs/specification.md describes each file."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def sentencepiece_model() -> Path:
    """A real SentencePiece model in Llama's style with 32,000 pieces, from mistral-common."""
    spec = importlib.util.find_spec("mistral_common")
    if spec is None:
        pytest.skip("mistral-common, which ships a SentencePiece model, is not installed (extra dev)")
    return Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"


def save_sentencepiece(model: Path, folder: Path, legacy: bool) -> Path:
    """Writes a model folder's tokenizer files as in Vicuna: tokenizer.model and a config."""
    shutil.copy(model, folder / "tokenizer.model")
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def load_sentencepiece():
    """From a folder of tokenizer files to the tokenizer, which is loaded once."""
    return cache(partial(load_tokenizer, padding_side="right"))


@pytest.fixture(scope="session")
def sentencepiece_folders(sentencepiece_model, tmp_path_factory) -> dict[bool, Path]:
    """Tokenizer files by their `legacy` setting."""
    names = {True: "legacy", False: "non-legacy"}
    return {
        legacy: save_sentencepiece(sentencepiece_model, tmp_path_factory.mktemp(name), legacy)
        for legacy, name in names.items()
    }


@pytest.fixture(scope="session")
def legacy_tokenizer(sentencepiece_folders, load_sentencepiece) -> PreTrainedTokenizerFast:
    """Vicuna's and Mistral's kind."""
    return load_sentencepiece(sentencepiece_folders[True])


@pytest.fixture(scope="session")
def non_legacy_tokenizer(sentencepiece_folders, load_sentencepiece) -> PreTrainedTokenizerFast:
    """Puts a space ahead of a text, and none behind a token such as <image>."""
    return load_sentencepiece(sentencepiece_folders[False])


@pytest.fixture(scope="session", params=[True, False], ids=["legacy", "non-legacy"])
def sentencepiece_folder(request, sentencepiece_folders) -> Path:
    """Tokenizer files in both `legacy` settings, one after the other."""
    return sentencepiece_folders[request.param]


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(sentencepiece_folder, load_sentencepiece) -> PreTrainedTokenizerFast:
    """Llama's kind; a test that asks for it runs for both `legacy` settings."""
    return load_sentencepiece(sentencepiece_folder)


@pytest.fixture(scope="session")
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level kind of SmolLM2 and Qwen. ChatML's marks are its BOS and EOS, and it adds no BOS."""
    return tiny.byte_level_tokenizer(
        SENTENCES,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )


@pytest.fixture(scope="session")
def llama_3_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3's kind: byte-level, with line ends in one token, its own marks, and a BOS before a text."""
    marks = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return tiny.byte_level_tokenizer(
        SENTENCES,
        marks,
        words=tiny.LLAMA_3_WORDS,
        adds_bos=True,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
    )
