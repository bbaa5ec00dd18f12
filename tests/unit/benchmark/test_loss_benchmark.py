"""The benchmark of the loss, with small sizes."""

import pytest

from llava.benchmark import loss
from llava.benchmark.__main__ import main


@pytest.mark.slow
def test_the_command_prints_memory_and_a_row_for_each_stage(capsys, monkeypatch):
    few = {name: (labels // 20, settings) for name, (labels, settings) in loss.STAGES.items()}
    monkeypatch.setattr(loss, "STAGES", few)
    sizes = "--tokens 64 --vocabulary 500 --width 8 --hidden_size 32 --layers 1 --repeats 1"
    main(["loss", *sizes.split()])
    printed = capsys.readouterr().out
    assert "loss of 64 labels with a vocabulary of 500 words" in printed
    assert "| pretrain.sh | 24 |" in printed
    assert "| finetune.sh | 60 |" in printed
