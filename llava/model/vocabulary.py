"""Adds tokens to the vocabulary of a language model and initialises their embeddings."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llava.model.zero3 import gathered


def add_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, words: list[str]) -> None:
    """Add `words` to the tokenizer and give each an input embedding and an output embedding.

    A new token starts at the mean of the known tokens. The matrices may have more rows than the tokenizer has
    tokens (Qwen2.5 has 151,936 rows for 151,665 tokens). A token that gets such a spare row starts at the
    mean too, since that row was never trained. Tokens that are already known keep their rows.
    """
    num_rows = model.get_input_embeddings().num_embeddings
    known = sorted(token for token in tokenizer.get_vocab().values() if token < num_rows)
    tokenizer.add_tokens(words, special_tokens=True)
    added = set(tokenizer.get_vocab().values()) - set(known)
    if not added:
        return
    total = max(num_rows, max(added) + 1)
    model.resize_token_embeddings(total, mean_resizing=False)
    new = sorted(added | set(range(num_rows, total)))
    tables = [module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    if tables[0] is tables[1]:
        tables = tables[:1]
    with torch.no_grad(), gathered(tables, write=True):
        for table in tables:
            table[new] = table[known].mean(dim=0, dtype=torch.float32).to(table.dtype)
