"""Pairs of a better and a worse answer to a prompt: their rows, documents and micro-batches."""
