"""A published command name; llava/published defines what it runs."""

from llava.published import COMMANDS

if __name__ == "__main__":
    raise SystemExit(COMMANDS["scripts/convert_mmvet_for_eval.py"].main())
