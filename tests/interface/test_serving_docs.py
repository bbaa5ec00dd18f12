"""docs/serving.md and docs/serving_api.md are right about flags and calls."""

import re
from pathlib import Path

import pytest

from llava.serve import api, cli, web

DOCS = Path(__file__).parents[2] / "docs"
# Flags of training and of vLLM, which these pages also name
ELSEWHERE = {
    "--scale_factor",
    "--elastic_scale_factors",
    "--trust-remote-code",
    "--trust-request-mm-kwargs",
    "--model-impl",
    "--model",
}


@pytest.mark.parametrize(
    ("page", "parsers"),
    [("serving.md", [cli.parse_args, web.parse_args]), ("serving_api.md", [api.build_parser().parse_args])],
)
def test_every_flag_exists(page, parsers, capsys):
    for parse in parsers:
        with pytest.raises(SystemExit, match="0"):
            parse(["--help"])
    known = set(re.findall(r"--[a-zA-Z0-9][\w-]*", capsys.readouterr().out))
    named = set(re.findall(r"(?<![\w-])--[a-zA-Z0-9][\w-]*", (DOCS / page).read_text()))
    assert named - ELSEWHERE <= known
    assert len(named) > 8
