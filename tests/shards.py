"""Tar shards of small samples."""

import io

import numpy as np
import webdataset
from PIL import Image


def png(seed: int) -> bytes:
    content = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def with_image(number: int) -> dict:
    """The members of one sample in a shard."""
    words = f"Number {number}." + " Yes." * (number % 7)
    return {"json": {"id": number, "conversations": turns("<image>\nWhich?", words)}, "png": png(number)}


def write(path, samples: dict[str, dict]) -> str:
    with webdataset.TarWriter(str(path)) as tar:
        for key, members in samples.items():
            tar.write({"__key__": key, **members})
    return str(path)
