"""The processes that a preflight starts: a check, and the ranks that a launcher starts for it.

usage: work.py {check NAME REQUEST RESULT | all_reduce RESULT | steps RESULT SCRATCH FLAGS...}
"""

import sys
from collections.abc import Callable


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__, end="")
        return
    kind, *arguments = sys.argv[1:]
    if kind != "check":
        from llava.train.launcher import end_with_launcher

        end_with_launcher()  # before the imports, which take seconds
    work: Callable
    if kind == "steps":
        from llava.benchmark.preflight.rehearsal import rehearse as work
    elif kind == "all_reduce":
        from llava.benchmark.preflight.all_reduce import measure as work
    else:
        from llava.benchmark.preflight.checks import answer as work
    work(*arguments)


if __name__ == "__main__":
    main()
