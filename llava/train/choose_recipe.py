"""Prints for scripts/launch.sh the flags that memory decides, a word a line, and the budget on stderr.

usage: python -m llava.train.choose_recipe --num_gpus N [--gpu_memory_mib M] [flags of train_mem.py]
"""

import sys


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__, end="")
        return
    from llava.command import exit_code  # after --help, because this import takes seconds
    from llava.train.recipe import decide

    def answer() -> None:
        decision = decide(sys.argv[1:])
        print("\n".join(f"memory: {line}" for line in decision.lines()), file=sys.stderr)
        print("\n".join(decision.flags()))

    sys.exit(exit_code(answer))


if __name__ == "__main__":
    main()
