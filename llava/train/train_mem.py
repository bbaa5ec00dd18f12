"""The entry that published scripts launch: deepspeed llava/train/train_mem.py --flags."""

import sys


def main() -> None:
    """Train, or say at once which flags there are."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        from llava.train.flags import help_page

        print(help_page(), end="")
        return
    from llava.train.train import train

    train()


if __name__ == "__main__":
    main()
