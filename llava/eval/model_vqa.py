"""model_vqa_loader with longer answers: LLaVA's command for open conversation."""

from dataclasses import replace

from llava.eval import model_vqa_loader

COMMAND = replace(model_vqa_loader.COMMAND, module="llava.eval.model_vqa", max_new_tokens=1024)

if __name__ == "__main__":
    raise SystemExit(COMMAND.main())
