"""The model card of an exported folder: what the model is, what it was trained on, how it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from llava.model.files import read_json

RUN_FILE = "run.json"  # training writes it
# Maps keys of run.json's training_arguments to their descriptions in the card
RECIPE = {
    "learning_rate": "learning rate",
    "mm_projector_lr": "learning rate of the projector",
    "num_train_epochs": "epochs",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warm-up, fraction of the steps",
    "weight_decay": "weight decay",
}
STOCK = """The training package is not needed.

With a pipeline:

```python
from transformers import pipeline

pipe = pipeline("image-text-to-text", model="{name}")
chat = [{{"role": "user", "content": [
    {{"type": "image", "url": "photo.jpg"}}, {{"type": "text", "text": "What is it?"}}]}}]
print(pipe(text=chat, max_new_tokens=64, return_full_text=False))
```

With model and processor; backend="pil" resizes images as in training:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{name}", backend="pil")
model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto", device_map="auto")
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, model.dtype)
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=64), skip_special_tokens=True))
```

With vLLM:

```bash
vllm serve {name}
```
"""
NATIVE = (
    STOCK.replace(
        "The training package is not needed.",
        "The classes are in the training package; install it from its repository. `import llava.hf` "
        "registers the classes.",
    )
    .replace("from transformers import", "import llava.hf\nfrom transformers import")
    .replace('; backend="pil" resizes images as in training', "")
    .replace(', backend="pil"', "")
)
WITH_CODE = (
    STOCK.replace(
        "The training package is not needed.",
        "This folder contains the code of the model's classes. Read modeling_visualprism.py, then load the "
        "folder with `trust_remote_code=True`. The training package is not needed.",
    )
    .replace('; backend="pil" resizes images as in training', "")
    .replace(', backend="pil"', ", trust_remote_code=True")
    .replace('model="{name}")', 'model="{name}", trust_remote_code=True)')
    .replace('device_map="auto")', 'device_map="auto", trust_remote_code=True)')
    .replace("vllm serve {name}", "vllm serve {name} --trust-remote-code")
)
BUDGETS = """
The number of visual tokens can be chosen: pass `processor_kwargs={{"scale_factor": s}}` to
`apply_chat_template`, or call `model.generate(..., scale_factor=s)`. The factor s is one of {factors}.
"""


def model_card(config, plan_path: Path, processor, num_tokens: int, name: str, loading: str) -> str:
    """The text of README.md.

    Args:
        config: our own configuration.
        plan_path: the folder that was exported; its run.json and README.md are read if they are there.
        processor: the exported processor.
        num_tokens: M, the number of tokens a view.
        name: the name of the repository or folder, for the title and the examples.
        loading: STOCK, NATIVE or WITH_CODE.
    """
    run = read_json(plan_path / RUN_FILE) if (plan_path / RUN_FILE).is_file() else {}
    bases = [base_of(config, run), config.mm_vision_tower]
    head = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": [base for base in bases if base and is_hub_name(base)],
        "tags": ["llava", config.mm_projector_type],
        **license_fields(plan_path),
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value), "---", ""]
    lines += [f"# {name.rsplit('/', 1)[-1]}", "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in facts(config, run, num_tokens) if value is not None]
    lines += ["", "## How to load it", "", loading.format(name=name)]
    images = processor.image_processor
    if getattr(images, "scale_factor", None) is not None:
        lines.append(BUDGETS.format(factors=", ".join(images.tokens_per_view)))
    lines += [
        "## License",
        "",
        "The licenses of the language model, of the vision tower and of the training data apply to these "
        "weights.",
    ]
    return "\n".join(lines) + "\n"


def facts(config, run: dict, num_tokens: int) -> Iterator[tuple[str, object]]:
    """Rows of the card's table; a value that is not known is None."""
    yield "language model", shown(base_of(config, run)) or type(config).__name__
    yield "vision tower", shown(config.mm_vision_tower)
    yield "projector", config.mm_projector_type
    yield "visual tokens per view", num_tokens
    tiled = f", {config.mm_patch_merge_type}" if config.image_aspect_ratio == "anyres" else ""
    yield "images", config.image_aspect_ratio + tiled
    yield "conversation template", config.conv_version
    data = run.get("data", {})
    files = ", ".join(Path(file).name for file in data.get("files") or []) or None
    yield "data", files and f"{files} ({data.get('records') or 'a stream of'} records)"
    yield "steps", run.get("step")
    arguments = run.get("training_arguments", {})
    yield from ((words, arguments.get(key)) for key, words in RECIPE.items())
    if "per_device_train_batch_size" in arguments:
        sizes = arguments["per_device_train_batch_size"], arguments.get("gradient_accumulation_steps", 1)
        yield "batch", sizes[0] * sizes[1] * run.get("world_size", 1)
    yield "code", run.get("git_commit")


def base_of(config, run: dict) -> str | None:
    """The language model that training started from."""
    return run.get("model_arguments", {}).get("model_name_or_path")


def shown(name: str | None) -> str | None:
    """A hub name as it is, or the last part of a path: a card must not describe the machine it comes from."""
    return name if name is None or is_hub_name(name) else Path(name).name


def is_hub_name(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def license_fields(folder: Path) -> dict[str, str]:
    """license, license_name and license_link from the folder's own card; without them license is "other"."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = dict(re.findall(r"^(license(?:_name|_link)?): *[\"']?([^\"'\n]+)", head[1] if head else "", re.M))
    return found or {"license": "other"}
