"""The comparison is fair: both ways train the same labels of the same records, in rows of the same limit."""

import json
from argparse import Namespace
from itertools import chain

from llava.benchmark.__main__ import main
from llava.benchmark.sharing import make_records, model_inputs, rows_of
from llava.constants import IGNORE_INDEX

SIZES = {"shape": "tiny", "records": 12, "before_tokens": 5, "median": 20, "spread": 0.9, "max_length": 200}


def test_both_ways_have_the_same_records_and_labels_within_the_same_limit():
    records = make_records(Namespace(**SIZES), share=3, num_visual=9)
    assert len({record.files[0] for record in records}) == 4
    labels, pictures = [], []
    for shared in (False, True):
        rows = rows_of(records, shared, max_length=200)
        assert sorted(record.name for record in chain(*rows)) == sorted(record.name for record in records)
        assert all(sum(record.length for record in row) <= 200 for row in rows)
        batch = model_inputs(rows, "cpu", None)
        labels.append(sorted(label for label in batch["labels"].flatten().tolist() if label != IGNORE_INDEX))
        pictures.append(len(batch["images"]))
    assert labels[0] == labels[1]
    assert pictures == [12, 4]


def test_the_command_prints_a_row_for_each_way_and_number_of_records(capsys, tmp_path):
    sizes = "--records 4 --records_a_picture 1 2 --median 10 --before_tokens 4 --layers 1 --scale_factor 8"
    main(["sharing", *sizes.split(), "--repeats", "1", "--output_dir", str(tmp_path)])
    rows = json.loads((tmp_path / "sharing.json").read_text())["rows"]
    assert [(row["records_a_picture"], row["pictures"]) for row in rows] == [(1, 4), (1, 4), (2, 4), (2, 2)]
    assert rows[2]["positions"] - rows[3]["positions"] == 2 * (4 + 9)
    assert (tmp_path / "sharing.md").read_text() in capsys.readouterr().out
