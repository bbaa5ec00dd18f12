"""python -m llava.benchmark COMMAND: run one measurement, or a report that runs several of them."""

from llava.benchmark import gpu_report
from llava.benchmark.commands import MEASURES, call
from llava.benchmark.preflight import command as preflight


def main(argv: list[str] | None = None) -> int:
    return call(MEASURES | {"gpu_report": gpu_report, "preflight": preflight}, argv)


if __name__ == "__main__":
    raise SystemExit(main())
