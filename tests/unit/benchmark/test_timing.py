"""What all benchmarks share: alternating runs, ratios within a round, and tables in pages."""

import pytest
import torch

from llava.benchmark import timing


def test_calls_take_turns_and_the_round_of_warm_up_is_not_kept():
    order = []

    def call(name):
        order.append(name)
        return {"seconds": len(order)}

    kept = timing.take_turns({"a": lambda: call("a"), "b": lambda: call("b")}, repeats=2)
    assert order == ["a", "b"] * 3
    assert kept == {"a": [{"seconds": 3}, {"seconds": 5}], "b": [{"seconds": 4}, {"seconds": 6}]}


def test_ratios_are_of_the_same_round():
    """The ratios do not change if the machine is ten times slower in one round."""
    ours = [{"seconds": s} for s in (1, 10, 1)]
    theirs = [{"seconds": s} for s in (2, 20, 2)]
    assert timing.median_ratio(ours, theirs, "seconds") == 0.5
    assert timing.median(ours, "seconds") == 1


def test_processor_time_is_taken_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(timing.time, "process_time", iter((2.0, 2.5)).__next__)
    monkeypatch.setattr(timing.time, "perf_counter", iter((10.0, 14.0)).__next__)
    assert timing.Clock("cpu", processor=True).timed(lambda: None) == 0.5
    assert timing.Clock("cpu").timed(lambda: None) == 4.0


def test_work_is_counted_with_and_without_memory_for_it():
    x, weight = torch.randn(3, 5), torch.randn(5, 7)
    assert timing.gflop(lambda: x @ weight) == pytest.approx(2 * 3 * 5 * 7 / 1e9)
    x, weight = x.to("meta"), weight.to("meta")
    assert timing.gflop(lambda: x @ weight) == pytest.approx(2 * 3 * 5 * 7 / 1e9)


def test_the_peak_is_what_is_held_at_once():
    def call():
        first = torch.ones(2**18)  # 1 MiB
        del first
        second, third = torch.ones(2**18), torch.ones(2**18)
        return second, third

    assert timing.peak_mib(call, "cpu") == pytest.approx(2, abs=0.1)


def test_provenance_says_where_figures_are_from():
    about = timing.provenance("cpu", "float32")
    assert set(about) == {"command", "date", "machine", "device", "cores", "threads", "versions", "dtype"}
    assert set(about["versions"]) == {"python", "torch", "transformers"}
    line = timing.headline(about)
    for part in (about["command"], about["date"], about["machine"], torch.__version__, "float32"):
        assert part in line


def test_a_table_goes_between_its_marks_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- speed_tiny -->\nold\n<!-- end speed_tiny -->\nbelow\n")
    timing.paste(page, "speed_tiny", "new\n")
    assert page.read_text() == "above\n<!-- speed_tiny -->\nnew\n<!-- end speed_tiny -->\nbelow\n"
    with pytest.raises(ValueError, match="no lines <!-- speed_7b -->"):
        timing.paste(page, "speed_7b", "new\n")
    timing.check_place(None, "speed_7b")
    with pytest.raises(ValueError, match="not a file"):
        timing.check_place(tmp_path / "other.md", "speed_7b")


def test_a_page_without_a_place_is_refused_ahead_of_any_measurement(tmp_path, capsys):
    from llava.benchmark.__main__ import main

    (tmp_path / "page.md").write_text("no place")
    for command in ("speed", "step"):
        flags = ["--docs", str(tmp_path / "page.md"), "--output_dir", str(tmp_path / "out")]
        assert main([command, *flags]) == 1
        assert f"has no lines <!-- {command}_tiny -->" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
