"""Text ↔ token ids, what a prompt looks like, and text from ids one by one."""

from .tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
