"""What whole models of a shape cost, from pixels to tokens and in a training step."""
