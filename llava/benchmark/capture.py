"""The cost of capturing attention: generation without and with it, in turns.

A question about an image is answered greedily with exactly --new_tokens tokens, in four ways. One captures
nothing. One keeps each token's attention to the visual tokens, the mean over heads, as the heatmap does. One
keeps that to all positions and its entropy, as the distribution does. One uses transformers' own
output_attentions, which needs eager attention. Times are only those of `generate`: the vision tower has run
before, because its time would only hide a difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from llava.benchmark.timing import (
    add_measure_flags,
    default_device,
    headline,
    medians,
    peak_mib,
    provenance,
    table,
)
from llava.decoding import Decoding
from llava.inference import add_flags, load_model

PLAIN, HEATMAP, DISTRIBUTION, REPORTED = "plain", "heatmap", "distribution", "output_attentions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, "--model-path", "--device")
    parser.add_argument("--image-file", help="path of a picture; default: a grey picture")
    parser.add_argument("--text", default="What is in the picture?", help="question")
    parser.add_argument("--new_tokens", type=int, default=32, help="length of the answer in tokens")
    add_measure_flags(parser, "--repeats", "--processor_time")
    parser.set_defaults(run=run)


def ways(model, tokenizer, question, num_new: int) -> dict[str, Callable[[], object]]:
    """Return each way to generate an answer of `num_new` tokens, as a function that returns long[1, num_new].

    Args:
        model, tokenizer: as load_pretrained_model returns them.
        question: the result of llava.visualization.answer.ask.
    """
    import torch

    from llava.visualization.attention import over_heads, visual_columns
    from llava.visualization.capture import attention_implementation, capture_attention

    layers = range(model.config.num_hidden_layers)
    columns, mean = visual_columns(question.merged), over_heads(model, None)

    def generate(**options):
        return model.generate(
            inputs_embeds=question.merged.inputs_embeds,
            attention_mask=question.merged.attention_mask.long(),
            min_new_tokens=num_new,
            pad_token_id=tokenizer.pad_token_id,
            **Decoding(max_new_tokens=num_new).kwargs(),
            **options,
        )

    def capture(reduce):
        with capture_attention(model, layers, reduce):
            return generate()

    def report():
        with attention_implementation(model.get_decoder(), "eager"):
            return generate(output_attentions=True, return_dict_in_generate=True).sequences

    return {
        PLAIN: generate,
        HEATMAP: lambda: capture(lambda weights: mean(weights[..., columns])),
        DISTRIBUTION: lambda: capture(
            lambda weights: (mean(weights), mean(torch.special.entr(weights).sum(dim=-1)))
        ),
        REPORTED: report,
    }


def run(args: argparse.Namespace) -> None:
    """Print a table with a row for each way."""
    import torch
    from PIL import Image

    from llava.mm_utils import load_image
    from llava.visualization.answer import ask

    device = args.device or default_device()
    loaded = load_model(args.model_path, device=device)
    model, tokenizer = loaded.model, loaded.tokenizer
    image = load_image(args.image_file) if args.image_file else Image.new("RGB", (336, 336), "grey")
    question = ask(model, tokenizer, loaded.image_processor, image, args.text)
    calls = ways(model, tokenizer, question, args.new_tokens)
    plain = calls[PLAIN]()
    for name in (HEATMAP, DISTRIBUTION):
        assert torch.equal(calls[name](), plain), "capturing does not change the answer"
    seconds = medians(calls, args.repeats, device, args.processor_time)
    about = provenance(device, str(model.dtype).removeprefix("torch."))
    print(
        f"{headline(about)}; {model.config.num_hidden_layers} layers of {model.config.num_attention_heads} "
        f"heads, {question.merged.inputs_embeds.shape[1]} positions and {args.new_tokens} new tokens.\n"
    )
    columns = ["generation", "seconds, median", "against plain", "most memory at a time, MiB"]
    rows = []
    for name, call in calls.items():
        ratio, most = seconds[name] / seconds[PLAIN], peak_mib(call, device)
        rows.append([name, f"{seconds[name]:.2f}", f"{ratio:.2f}x", f"{most:.1f}"])
    print(table(columns, rows))
