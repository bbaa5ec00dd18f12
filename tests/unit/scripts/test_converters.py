"""The converters of the quick start, with tiny files in the formats of the real ones."""

import json

import convert_dinov2_onnx
import convert_easy_vqa
import convert_gguf
import gguf
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from output_folder import write_folder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Model
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,
)  # 5.17 hides it without torchvision

WIDTH, PATCH, GRID, LAYERS = 64, 14, 2, 2
BLOCK_LINEARS = {
    "attention.attention.query": (WIDTH, WIDTH),
    "attention.attention.key": (WIDTH, WIDTH),
    "attention.attention.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "mlp.fc1": (4 * WIDTH, WIDTH),
    "mlp.fc2": (WIDTH, 4 * WIDTH),
}
BLOCK_VECTORS = (
    "norm1.weight",
    "norm1.bias",
    "norm2.weight",
    "norm2.bias",
    "layer_scale1.lambda1",
    "layer_scale2.lambda1",
)


def assert_nothing_left(folder):
    assert not folder.exists()
    assert not folder.with_name(folder.name + ".tmp").exists()


# ---- ONNX ----


def dinov2_weights() -> dict[str, np.ndarray]:
    """Random weights with the names in Hugging Face's DINOv2 files."""
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + GRID**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}."
        shapes |= {block + name: (WIDTH,) for name in BLOCK_VECTORS}
        for name, shape in BLOCK_LINEARS.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def export_like_torch(weights: dict[str, np.ndarray], path) -> None:
    """Write an ONNX file like torch.onnx: matrices are transposed and nameless, and a decoder follows."""
    initialisers, nodes = {"decoder.upconv1.weight": np.zeros((WIDTH, 8, 4, 4), np.float32)}, []
    for name, array in weights.items():
        if name == "embeddings.position_embeddings":
            initialisers |= {"onnx::Concat_1957": array[:, :1], "onnx::Reshape_1962": array[:, 1:]}
        elif name.endswith(".weight") and array.ndim == 2:
            matrix, bias = f"onnx::MatMul_{len(nodes)}", "backbone." + name.removesuffix("weight") + "bias"
            initialisers[matrix] = array.T
            nodes += [
                helper.make_node("MatMul", ["x", matrix], [f"{name}/product"]),
                helper.make_node("Add", [bias, f"{name}/product"], [f"{name}/sum"]),
            ]
        else:
            initialisers["backbone." + name] = array
    graph = helper.make_graph(
        nodes,
        "export",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in initialisers.items()],
    )
    onnx.save(helper.make_model(graph), path)


@pytest.fixture
def dinov2_export(tmp_path):
    export_like_torch(dinov2_weights(), tmp_path / "tower.onnx")
    return tmp_path / "tower.onnx"


def test_onnx_weights_arrive_under_their_names_and_fill_the_model(dinov2_export, tmp_path):
    folder = tmp_path / "tower"
    assert convert_dinov2_onnx.convert(dinov2_export, folder)
    saved = load_file(folder / "model.safetensors")
    expected = dinov2_weights()
    assert saved.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(saved[name].numpy(), array)
    model, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (WIDTH, LAYERS)
    assert (model.config.image_size, model.config.patch_size) == (GRID * PATCH, PATCH)
    positions = torch.from_numpy(expected["embeddings.position_embeddings"])
    torch.testing.assert_close(model.embeddings.position_embeddings.data, positions, rtol=0, atol=0)


def test_onnx_image_processor_is_imagenets_at_224(dinov2_export, tmp_path):
    convert_dinov2_onnx.convert(dinov2_export, tmp_path / "tower")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tower", backend="pil")
    pixels = processor(np.full((30, 60, 3), 255, np.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixels[0, :, 0, 0], white)


def test_onnx_conversion_is_done_once(dinov2_export, tmp_path):
    convert_dinov2_onnx.convert(dinov2_export, tmp_path / "tower")
    dinov2_export.unlink()
    assert not convert_dinov2_onnx.convert(dinov2_export, tmp_path / "tower")


@pytest.mark.parametrize("lost", ["encoder.layer.1.mlp.fc2.weight", "layernorm.bias"])
def test_onnx_with_a_weight_missing_is_refused_by_its_name(tmp_path, lost):
    weights = dinov2_weights()
    del weights[lost]
    export_like_torch(weights, tmp_path / "tower.onnx")
    with pytest.raises(ValueError, match=rf"missing keys: .*{lost.rsplit('.', 2)[1]}"):
        convert_dinov2_onnx.convert(tmp_path / "tower.onnx", tmp_path / "tower")
    assert_nothing_left(tmp_path / "tower")


def test_onnx_of_a_wrong_shape_is_refused(tmp_path):
    weights = dinov2_weights() | {"layernorm.weight": np.ones(WIDTH + 1, np.float32)}
    export_like_torch(weights, tmp_path / "tower.onnx")
    with pytest.raises(ValueError, match=r"mismatched keys: .*layernorm\.weight"):
        convert_dinov2_onnx.convert(tmp_path / "tower.onnx", tmp_path / "tower")
    assert_nothing_left(tmp_path / "tower")


def test_onnx_file_cut_short_is_refused(dinov2_export, tmp_path):
    content = dinov2_export.read_bytes()
    dinov2_export.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"tower\.onnx.*ONNX"):
        convert_dinov2_onnx.convert(dinov2_export, tmp_path / "tower")
    assert_nothing_left(tmp_path / "tower")


# ---- GGUF ----


def write_gguf(path, hidden: int = 64, layers: int = 1) -> dict[str, np.ndarray]:
    """A random Llama with a byte-level vocabulary and SmolLM2's special tokens."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "re", "red"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["r e", "re d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(tokens), hidden), "output_norm.weight": (hidden,)}
    for layer in range(layers):
        block = f"blk.{layer}."
        shapes |= {block + name: (hidden,) for name in ("attn_norm.weight", "ffn_norm.weight")}
        shapes |= {block + name: (hidden, hidden) for name in ("attn_q.weight", "attn_output.weight")}
        shapes |= {block + name: (hidden // 2, hidden) for name in ("attn_k.weight", "attn_v.weight")}
        shapes |= {block + name: (2 * hidden, hidden) for name in ("ffn_gate.weight", "ffn_up.weight")}
        shapes[block + "ffn_down.weight"] = (hidden, 2 * hidden)
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_gguf_becomes_a_plain_folder_with_its_weights_and_special_tokens(tmp_path):
    tensors = write_gguf(tmp_path / "tiny.gguf")
    folder = tmp_path / "language_model"
    assert convert_gguf.convert(tmp_path / "tiny.gguf", folder)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    block = model.model.layers[0]
    for ours, theirs in {
        model.get_input_embeddings(): "token_embd.weight",
        block.mlp.gate_proj: "blk.0.ffn_gate.weight",
        block.self_attn.o_proj: "blk.0.attn_output.weight",
        model.model.norm: "output_norm.weight",
    }.items():
        np.testing.assert_array_equal(ours.weight.detach().numpy(), tensors[theirs])

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    ids = tokenizer("<|im_start|>red é<|im_end|>").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["<|im_start|>", "red"]
    assert tokenizer.decode(ids) == "<|im_start|>red é<|im_end|>"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"PK\x03\x04 no model", "GGUF file"), (b"GGUF", "cannot be read")],
)
def test_gguf_that_is_missing_or_damaged_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / "tiny.gguf"
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"tiny\.gguf.*{message}"):
        convert_gguf.convert(path, tmp_path / "language_model")
    assert_nothing_left(tmp_path / "language_model")


def test_gguf_cut_short_is_refused(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(ValueError, match=r"tiny\.gguf.*cannot be read"):
        convert_gguf.convert(path, tmp_path / "language_model")
    assert_nothing_left(tmp_path / "language_model")


# ---- easy-VQA ----

TRAIN = [
    ["what is the blue shape?", "rectangle", 0],
    ["is there a triangle in the image?", "no", 0],
    ["what color is the shape?", "blue", 0],
    ["is there not a circle?", "yes", 1],
    ["is no triangle present?", "yes", 1],
    ["is a red shape present?", "yes", 1],
    ["what shape is present?", "circle", 2],
]
TEST = [["is there a circle?", "yes", 0], ["what color is the circle?", "teal", 0]]


@pytest.fixture
def easy_vqa(tmp_path):
    data = tmp_path / "data"
    for split, rows in {"train": TRAIN, "test": TEST}.items():
        (data / split / "images").mkdir(parents=True)
        (data / split / "questions.json").write_text(json.dumps(rows))
        for _, _, image in rows:
            (data / split / "images" / f"{image}.png").touch()
    return data


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_easy_vqa_trains_on_captions_and_on_open_questions(easy_vqa, tmp_path):
    assert convert_easy_vqa.convert(easy_vqa, tmp_path / "records")
    pretrain = json.loads((tmp_path / "records" / "pretrain.json").read_text())
    said = {record["image"]: [turn["value"] for turn in record["conversations"]] for record in pretrain}
    assert said == {
        "train/images/0.png": ["<image>", "a blue rectangle"],
        "train/images/1.png": ["<image>", "a red rectangle"],
        "train/images/2.png": ["<image>", "a circle"],
    }
    finetune = json.loads((tmp_path / "records" / "finetune.json").read_text())
    assert [record["image"] for record in finetune] == ["train/images/0.png", "train/images/2.png"]
    assert finetune[0]["conversations"] == [
        {"from": "human", "value": "<image>\nwhat is the blue shape?"},
        {"from": "gpt", "value": "rectangle"},
        {"from": "human", "value": "what color is the shape?"},
        {"from": "gpt", "value": "blue"},
    ]


def test_easy_vqa_asks_no_yes_no_question_and_keeps_the_splits_apart(easy_vqa, tmp_path):
    convert_easy_vqa.convert(easy_vqa, tmp_path / "records")
    test = read_jsonl(tmp_path / "records" / "test_questions.jsonl")
    assert test == [
        {
            "question_id": 1,
            "image": "test/images/0.png",
            "text": "what color is the circle?",
            "answer": "teal",
            "category": "color",
        }
    ]
    train = read_jsonl(tmp_path / "records" / "train_questions.jsonl")
    assert [row["question_id"] for row in train] == [0, 2, 6]
    assert not {row["image"] for row in train} & {row["image"] for row in test}


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        ([("is there not a blue shape?", "no")], "a blue shape"),
        ([("does the image contain a circle?", "no"), ("is a triangle present?", "no")], "a rectangle"),
        ([("is no red shape present?", "no"), ("what is the red shape?", "circle")], "a red circle"),
        ([("is there a circle?", "no")], "a shape"),
    ],
)
def test_easy_vqa_caption_says_what_the_answers_imply(questions, expected):
    assert convert_easy_vqa.caption(questions) == expected


def test_easy_vqa_writes_the_same_bytes_again(easy_vqa, tmp_path):
    for name in ("first", "second"):
        convert_easy_vqa.convert(easy_vqa, tmp_path / name)
    for name in convert_easy_vqa.OUTPUTS:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_easy_vqa_with_an_image_missing_is_refused_by_its_name(easy_vqa, tmp_path):
    (easy_vqa / "test/images/0.png").unlink()
    with pytest.raises(ValueError, match=r"1 images .*test/images/0\.png"):
        convert_easy_vqa.convert(easy_vqa, tmp_path / "records")
    assert_nothing_left(tmp_path / "records")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[["what', "not a list"),
        ('[["what color?", "mauve", 0]]', "mauve"),
        ('[["what?", "red"]]', "not a list"),
    ],
)
def test_easy_vqa_with_damaged_questions_is_refused_by_its_file(easy_vqa, tmp_path, content, message):
    (easy_vqa / "train/questions.json").write_text(content)
    with pytest.raises(ValueError, match=rf"train/questions\.json.*{message}"):
        convert_easy_vqa.convert(easy_vqa, tmp_path / "records")


# ---- the folder rule they share ----


def test_folder_of_an_interrupted_run_is_made_anew(tmp_path):
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "half").touch()
    assert write_folder(tmp_path / "out", ("whole",), lambda folder: (folder / "whole").touch())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]
    assert not (tmp_path / "out.tmp").exists()


def test_folder_with_other_content_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"lacks config\.json"):
        write_folder(tmp_path, ("config.json",), lambda folder: None)
    assert (tmp_path / "mine.txt").exists()


def test_converter_prints_one_line_of_error_and_fails(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        convert_easy_vqa.main(["--data", str(tmp_path / "absent"), "--output", str(tmp_path / "records")])
    message = str(stopped.value.code)
    assert message.startswith("convert_easy_vqa: ")
    assert "absent/train/questions.json does not exist" in message
    assert "\n" not in message
