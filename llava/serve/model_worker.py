"""Gone, as llava.serve.replaced says."""

from llava.serve.replaced import refuse

if __name__ == "__main__":
    raise SystemExit(refuse("model_worker"))
