"""All ways of capturing generate the same answer, and the command compares each with plain generation."""

import tiny

from llava.benchmark.__main__ import main


def test_the_command_prints_a_row_for_each_way(tmp_path, capsys):
    folder = tiny.save_llava(tmp_path / "model")
    main(["capture", "--model-path", str(folder), "--new_tokens", "2", "--repeats", "1", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    (about,) = [line for line in lines if "new tokens" in line]
    assert "3 layers of 4 heads" in about
    assert "2 new tokens" in about
    table = [line.split(" | ") for line in lines if line.startswith("|")][2:]
    assert [row[0] for row in table] == ["| plain", "| heatmap", "| distribution", "| output_attentions"]
    assert table[0][2] == "1.00x"
    assert all(float(row[3].removesuffix(" |")) > 0 for row in table)
