"""model_vqa_loader by the name that VisualPrism's script for POPE calls it."""

from dataclasses import replace

from llava.eval import model_vqa_loader

COMMAND = replace(model_vqa_loader.COMMAND, module="llava.eval.model_vqa_loader_pope")

if __name__ == "__main__":
    raise SystemExit(COMMAND.main())
