"""A published name: llava/published says what it does."""

from llava.published import COMMANDS

if __name__ == "__main__":
    raise SystemExit(COMMANDS["llava.eval.model_vqa_loader"].main())
