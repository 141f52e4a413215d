"""The network and what is computed with it. Imports torch and nothing else, so that it can be lifted out."""

from .decoder import Decoder
from .kv_cache import KVCache

__all__ = ["Decoder", "KVCache"]
