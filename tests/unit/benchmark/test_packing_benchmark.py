"""The comparison is fair: each way trains on the same records, in batches with the same limit."""

from itertools import chain

import pytest

from llava.benchmark.__main__ import main
from llava.benchmark.packing import batches, model_inputs, record_lengths


def test_all_ways_take_each_record_once_within_the_same_limit():
    lengths = record_lengths(60, 40, 0.9, 128)
    for name, batched in batches(lengths, 3, 128).items():
        rows = list(chain(*batched))
        records = [record for row in rows for record in (row if isinstance(row, list) else [row])]
        assert sorted(records) == list(range(60)), name
        for batch in batched:
            ids = model_inputs(batch, lengths)["input_ids"]
            assert ids.shape[0] <= 3
            assert ids.shape[1] <= 128


def test_the_command_prints_a_row_for_each_way(capsys):
    sizes = "--records 12 --median 10 --max_length 32 --hidden_size 64 --layers 1 --repeats 1"
    main(["packing", *sizes.split()])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| padded",
        "| padded, grouped by length",
        "| packed",
    ]
    assert table[2].endswith("| 1.00x |")


def test_an_unknown_command_is_refused():
    with pytest.raises(SystemExit):
        main(["unpacking"])
