"""The entry point that published scripts launch: deepspeed llava/train/train_mem.py --flags."""

import sys


def main() -> None:
    """Train, or print the flags at once if --help is given."""
    try:
        if {"-h", "--help"} & set(sys.argv[1:]):
            from llava.train.flags import help_page

            print(help_page(), end="")
            return
        from llava.quiet import quiet_libraries
        from llava.train.launcher import end_with_launcher, run_rank

        end_with_launcher()  # before imports that take seconds
        quiet_libraries()  # before imports that print
        from llava.train.train import train
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("llava."):
            raise
        sys.exit(
            f"train_mem.py: {error} in {sys.executable}. Run 'bash scripts/quickstart.sh', activate an "
            "environment that contains the package, or run 'pip install -e .' in this one."
        )
    run_rank(train)


if __name__ == "__main__":
    main()
