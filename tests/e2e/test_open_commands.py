"""Benchmarks with a judge or several images, with a tiny random model: llava.eval.run, published commands."""

import json
import threading
from argparse import Namespace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler

import open_benchmarks
import pytest
import tiny
from messages import assert_names
from PIL import Image

import llava.model.builder
from llava.eval import run, run_llava
from llava.eval.records import read_jsonl
from llava.published import COMMANDS

eval_docvqa, eval_ocr_bench = (COMMANDS[f"llava.eval.{name}"] for name in ("eval_docvqa", "eval_ocr_bench"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, and with the benchmarks below data."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save_llava(folder / "model")
    for build in open_benchmarks.BUILDERS.values():
        build(folder / "data")
    return folder


def serve(handler) -> tuple[HTTPServer, str]:
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def judge():
    """(address of a judge that gives every answer half of the best score, its prompts)."""
    prompts = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompts.append(body["messages"][-1]["content"])
            reply = "8 4\nBecause." if "[Assistant 1]" in prompts[-1] else "0.5"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": reply}}]}).encode())

        def log_message(self, *args):
            pass

    server, address = serve(Handler)
    yield f"{address}/v1", prompts
    server.shutdown()
    server.server_close()


def run_tasks(world, output, tasks, *more) -> dict:
    """Runs llava.eval.run; returns {task: result}."""
    argv = ["--model-path", world / "model", "--data-root", world / "data", "--output-dir", output]
    argv += ["--tasks", ",".join(tasks), "--max_new_tokens", "2", *more]
    assert run.main([str(part) for part in argv]) == 0
    return {task["name"]: task for task in json.loads((output / "results.json").read_text())["tasks"]}


def test_run_without_a_judge_answers_scores_and_exports(world, tmp_path):
    results = run_tasks(world, tmp_path, open_benchmarks.BUILDERS)
    assert set(results) == set(open_benchmarks.BUILDERS)
    unscored = {name for name, result in results.items() if result["scores"] is None}
    assert unscored == {"llava_bench", "mmvet", "qbench_test", "qbench_zh_test", "docvqa_test"}
    for name in unscored:
        (path,) = results[name]["submission"]
        assert (tmp_path / name / path.rsplit("/", 1)[-1]).is_file()
    page = (tmp_path / "report.md").read_text()
    assert "MM-Vet_Evaluator" in page


def test_run_with_a_judge_scores_and_asks_it_once(world, tmp_path, judge):
    url, prompts = judge
    more = ("--judge-url", url, "--judge-model", "j")
    results = run_tasks(world, tmp_path, ["llava_bench", "mmvet"], *more)
    tables = {name: result["scores"]["table"]["overall"] for name, result in results.items()}
    assert tables["llava_bench"]["relative"]["value"] == tables["mmvet"]["score"]["value"] == 0.5
    assert len(prompts) == 6
    published = json.loads((tmp_path / "results.json").read_text())["published"]
    assert published["MM-Vet"] == "50.0"
    assert run_tasks(world, tmp_path, ["mmvet"], *more)["mmvet"]["scores"]
    assert len(prompts) == 6


def docvqa_argv(world, answers) -> list[str]:
    folder = world / "data" / "docvqa"
    argv = ["--model-path", world / "model", "--question-file", folder / "test_v1.0.json"]
    argv += ["--image-folder", folder / "images", "--answers-file", answers, "--max_new_tokens", 2]
    return [str(part) for part in argv]


def test_docvqa_is_answered_into_its_published_rows_and_resumed(world, tmp_path, monkeypatch):
    answers = tmp_path / "1_0.jsonl"
    assert eval_docvqa.main(docvqa_argv(world, answers)) == 0
    rows = read_jsonl(answers)
    assert [sorted(row) for row in rows] == [["answer", "questionId"]] * 2
    content = answers.read_bytes()
    answers.unlink()
    monkeypatch.setattr(llava.model.builder, "load_pretrained_model", None)  # all answers are kept
    assert eval_docvqa.main(docvqa_argv(world, answers)) == 0
    assert answers.read_bytes() == content


def test_ocr_bench_takes_its_published_flags_and_writes_its_published_file(world, tmp_path, capsys):
    folder = world / "data" / "OCRBench"
    argv = ["--model_path", world / "model", "--image_folder", folder / "OCRBench_Images"]
    argv += ["--output_folder", tmp_path, "--OCRBench_file", folder / "OCRBench.json", "--save_name", "m"]
    argv += ["--temperature", 0, "--conv_mode", "vicuna_v1", "--num_workers", 1, "--max_new_tokens", 2]
    assert eval_ocr_bench.main([str(part) for part in argv]) == 0
    published = json.loads((folder / "OCRBench.json").read_text())
    for row, result in zip(published, json.loads((tmp_path / "m.json").read_text()), strict=True):
        assert result == row | {"predict": result["predict"], "result": 0}
    printed = capsys.readouterr().out
    assert "Final Score(Total 4): 0\n" in printed
    assert "Text Recognition(Total 2): 0\n" in printed


def test_ocr_bench_leaves_skipped_questions_without_a_prediction(world, tmp_path, capsys):
    folder = open_benchmarks.ocr_bench(tmp_path)
    (folder / "OCRBench_Images" / "IIIT5K" / "test" / "0.png").unlink()
    argv = ["--model-path", world / "model", "--image_folder", folder / "OCRBench_Images", "--save_name", "m"]
    argv += ["--output_folder", tmp_path, "--OCRBench_file", folder / "OCRBench.json", "--max_new_tokens", 2]
    argv = [str(part) for part in argv]
    assert eval_ocr_bench.main(argv) == 1
    assert_names(capsys.readouterr().err, "1 question(s)", "image", "not exist")
    assert eval_ocr_bench.main([*argv, "--on_bad_record", "skip"]) == 0
    assert ["predict" in row for row in json.loads((tmp_path / "m.json").read_text())] == [False, *[True] * 3]


@pytest.fixture
def pictures(tmp_path):
    """A folder with two pictures, and its address."""
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    Image.new("RGB", (40, 90), "blue").save(tmp_path / "b.png")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server, address = serve(partial(Handler, directory=str(tmp_path)))
    yield tmp_path, address
    server.shutdown()
    server.server_close()


def test_run_llava_prints_the_answer_to_files_and_addresses(world, pictures, capsys):
    folder, address = pictures

    def answer(images: str, query: str, *more: str) -> str:
        argv = ["--model-path", str(world / "model"), "--image-file", images, "--query", query]
        capsys.readouterr()
        assert run_llava.main([*argv, "--max_new_tokens", "12", *more]) == 0
        return capsys.readouterr().out

    here = answer(f"{folder}/a.png,{folder}/b.png", "what is it?")
    assert here.strip()
    assert answer(f"{address}/a.png|{folder}/b.png", "what is it?", "--sep", "|") == here
    placed = "<image-placeholder>\n<image-placeholder>\nwhat is it?"
    assert answer(f"{folder}/a.png,{folder}/b.png", placed) == here
    assert answer(f"{folder}/b.png,{folder}/a.png", placed) != here
    assert answer(f"{folder}/a.png,{folder}/b.png", placed, "--scale_factor", "3") != here


def test_run_llava_is_called_from_python_as_llava_documents_it(world, pictures, capsys):
    flags = {"model_path": str(world / "model"), "model_base": None, "model_name": "m", "query": "why?"}
    flags |= {"conv_mode": None, "image_file": f"{pictures[0]}/a.png", "sep": ",", "temperature": 0}
    run_llava.eval_model(Namespace(**flags, top_p=None, num_beams=1, max_new_tokens=4))
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "query", "parts"),
    [
        ("nowhere.png", "why?", ("nowhere.png", "not exist")),
        ("http://127.0.0.1:9/a.png", "why?", ("--image-file http://127.0.0.1:9/a.png: ", "fetched")),
        ("a.png", "<image-placeholder> or <image-placeholder>?", ("2 <image> for 1 image",)),
    ],
)
def test_run_llava_says_what_is_wrong(world, images, query, parts, capsys):
    argv = ["--model-path", str(world / "model"), "--image-file", images, "--query", query]
    assert run_llava.main(argv) == 1
    assert_names(capsys.readouterr().err, *parts)
