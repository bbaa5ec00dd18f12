"""Pure metrics; they need the standard library and numpy, and rapidfuzz for the edit distance.

A benchmark's `*_table` takes one small tuple per answer and returns {row: {column: Score}}.
"""

from llava.eval.metrics.docvqa import anls
from llava.eval.metrics.gqa import GQAAnswer, gqa_correct, gqa_table, normalize_gqa_answer
from llava.eval.metrics.llava_bench import LlavaBenchAnswer, llava_bench_table, parse_score_pair
from llava.eval.metrics.mmbench import CircularAnswer, circular_table
from llava.eval.metrics.mme import MMEAnswer, mme_table, parse_mme_answer
from llava.eval.metrics.mmmu import (
    MMMUAnswer,
    guess_option,
    mmmu_table,
    open_answer_correct,
    parse_multiple_choice,
)
from llava.eval.metrics.mmvet import MMVetAnswer, mmvet_table, parse_correctness
from llava.eval.metrics.ocrbench import OCRBenchAnswer, ocrbench_correct, ocrbench_table
from llava.eval.metrics.options import parse_option_letter
from llava.eval.metrics.pope import PopeAnswer, parse_yes_no, pope_table
from llava.eval.metrics.prismvqa import PrismVQAAnswer, prismvqa_table
from llava.eval.metrics.proportion import bootstrap_interval, wilson_interval
from llava.eval.metrics.science_qa import ScienceQAAnswer, science_qa_table
from llava.eval.metrics.seed import SeedAnswer, seed_table
from llava.eval.metrics.table import Score, Table, mean_score, mean_table
from llava.eval.metrics.text_match import exact_match
from llava.eval.metrics.vqa import normalize_vqa_answer, vqa_accuracy, vqa_soft_accuracy

__all__ = [
    "CircularAnswer",
    "GQAAnswer",
    "LlavaBenchAnswer",
    "MMEAnswer",
    "MMMUAnswer",
    "MMVetAnswer",
    "OCRBenchAnswer",
    "PopeAnswer",
    "PrismVQAAnswer",
    "ScienceQAAnswer",
    "Score",
    "SeedAnswer",
    "Table",
    "anls",
    "bootstrap_interval",
    "circular_table",
    "exact_match",
    "gqa_correct",
    "gqa_table",
    "guess_option",
    "llava_bench_table",
    "mean_score",
    "mean_table",
    "mme_table",
    "mmmu_table",
    "mmvet_table",
    "normalize_gqa_answer",
    "normalize_vqa_answer",
    "ocrbench_correct",
    "ocrbench_table",
    "open_answer_correct",
    "parse_correctness",
    "parse_mme_answer",
    "parse_multiple_choice",
    "parse_option_letter",
    "parse_score_pair",
    "parse_yes_no",
    "pope_table",
    "prismvqa_table",
    "science_qa_table",
    "seed_table",
    "vqa_accuracy",
    "vqa_soft_accuracy",
    "wilson_interval",
]
