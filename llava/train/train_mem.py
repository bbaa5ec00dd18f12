"""The entry that published scripts launch: deepspeed llava/train/train_mem.py --flags."""

from llava.train.train import train

if __name__ == "__main__":
    train()
