"""Training on pairs of a better and a worse answer to a prompt."""
