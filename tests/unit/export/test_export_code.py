"""An exported folder with the code of its classes loads without this package."""

import ast
import builtins
import copy
import dis
import json
import os
import subprocess
import sys
import types

import exports
import pytest
import torch
from transformers.dynamic_module_utils import get_imports

from llava.export.code import FILE, modelling_file
from llava.export.folder import export

MODELS = {  # maps a name to the arguments of tiny.build
    "visualprism_v2": {"mm_projector_type": "visualprism_v2"},
    "slice": {"mm_projector_type": "visualprism", "tower": "siglip", "image_aspect_ratio": "slice"},
    "anyres": {
        "mm_projector_type": "tokenpacker",
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": "(1x1),...,(2x2)",
    },
    "pruner": {"mm_projector_type": "visionzip", "num_visual_tokens": 4},
}
QUESTION = [("what is it?", 1, None)]
ALONE = """
import sys
for name in ("llava", "pywt"):
    sys.modules[name] = None  # an import of it fails
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image

folders, picture, chat, out = sys.argv[1].split(), Image.open(sys.argv[2]), eval(sys.argv[3]), sys.argv[4]
chat[0]["content"][0]["image"] = picture
found = []
for folder in folders:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        found.append((inputs["input_ids"], model(**inputs).logits))
torch.save(found, out)
"""


@pytest.mark.slow
@pytest.mark.transformers
def test_it_gives_the_same_ids_and_logits_without_this_package(tmp_path, bpe_tokenizer):
    for name, build in MODELS.items():
        ours = exports.save_whole(tmp_path / f"{name}-ours", copy.deepcopy(bpe_tokenizer), **build)
        export(str(ours), tmp_path / name, with_code=True)
    (image,) = exports.pictures(1)
    image.save(tmp_path / "image.png")
    chat = exports.messages(QUESTION, iter([None]))
    folders = " ".join(str(tmp_path / name) for name in MODELS)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    arguments = [folders, tmp_path / "image.png", repr(chat), tmp_path / "found"]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, (ids, logits) in zip(MODELS, torch.load(tmp_path / "found"), strict=True):
        theirs = exports.Theirs(tmp_path / name)  # with this package, and without running the folder's code
        inputs = theirs.inputs([QUESTION], [image])
        torch.testing.assert_close(ids, inputs.input_ids)
        with torch.no_grad():
            torch.testing.assert_close(logits, theirs.model(**inputs).logits, msg=name)


def globals_of(code):
    """The global names that functions in the code look up."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return found.union(*map(globals_of, inner))


def test_the_file_is_complete_and_defines_each_name_once(tmp_path):
    text = modelling_file()
    assert text == modelling_file()
    tree = ast.parse(text)
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert len(set(defined)) == len(defined)
    module = types.ModuleType("modeling_visualprism")
    sys.modules[module.__name__] = module
    try:
        exec(code := compile(tree, FILE, "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    assert globals_of(code) <= {*module.__dict__, *dir(builtins)}


def test_transformers_asks_for_no_package_beyond_its_own(tmp_path):
    (tmp_path / FILE).write_text(modelling_file())
    asked = set(get_imports(tmp_path / FILE)) - sys.stdlib_module_names
    assert asked <= {"torch", "transformers", "numpy", "PIL"}


def test_a_model_of_transformers_own_class_holds_none(tmp_path, bpe_tokenizer):
    ours = exports.save_whole(tmp_path / "ours", copy.deepcopy(bpe_tokenizer), mm_projector_type="mlp2x_gelu")
    export(str(ours), tmp_path / "theirs", with_code=True)
    assert not (tmp_path / "theirs" / FILE).exists()
    assert "auto_map" not in json.loads((tmp_path / "theirs/config.json").read_text())
