"""llama.cpp's C interface (its include/llama.h), in the library that the package xllamacpp brings ready-made.

xllamacpp's own classes are a server that takes requests and streams text, which loses the ids of bytes that aren't yet
a character, and samples in its own way. Its library exports the C functions too: those give logits, step by step.
Structs that functions take by value have grown with almost every version, but not at their beginnings, and a caller
may hand over more bytes than the function reads: on the stack as the last argument, or by address. What llama.cpp made
of the numbers is asked back and compared, so that another layout is an error here and never a wrong result.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint.weights import CheckpointError

INSTALL = "backend=llama_cpp needs the package xllamacpp, which is not installed: pip install 'moyun[llama_cpp]'"
TESTED = "2026.10"


class ModelParameters(ctypes.Structure):
    """Defaults, whatever they are: nothing is set."""

    _fields_ = [("content", ctypes.c_uint8 * 1024)]


class ContextParameters(ctypes.Structure):
    _fields_ = [
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("others", ctypes.c_uint8 * 1024),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


POINTER, INT, UINT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LOG, POINTER]),
    "llama_model_default_params": (ModelParameters, []),
    "llama_model_load_from_file": (POINTER, [ctypes.c_char_p, ModelParameters]),
    "llama_model_free": (None, [POINTER]),
    "llama_model_get_vocab": (POINTER, [POINTER]),
    "llama_vocab_n_tokens": (INT, [POINTER]),
    "llama_context_default_params": (ContextParameters, []),
    "llama_init_from_model": (POINTER, [POINTER, ContextParameters]),
    "llama_free": (None, [POINTER]),
    "llama_n_ctx": (UINT, [POINTER]),
    "llama_n_batch": (UINT, [POINTER]),
    "llama_n_seq_max": (UINT, [POINTER]),
    "llama_set_n_threads": (None, [POINTER, INT, INT]),
    "llama_batch_init": (Batch, [INT, INT, INT]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (INT, [POINTER, Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [POINTER, INT]),
}
"""Name → what it returns and what it takes."""

silent = LOG(lambda level, text, data: None)  # kept: llama.cpp calls it for as long as the process lives


@functools.cache
def library() -> Any:
    """The functions, with their types. Raises ValueError for no such library, or one of another interface."""
    try:
        from xllamacpp import xllamacpp
    except ImportError as error:
        raise ValueError(INSTALL) from error
    found = ctypes.CDLL(xllamacpp.__file__)
    for name, (result, arguments) in FUNCTIONS.items():
        try:
            function = getattr(found, name)
        except AttributeError as error:
            raise another_interface(f"has no {name}") from error
        function.restype, function.argtypes = result, arguments
    found.llama_log_set(silent, None)
    found.llama_backend_init()
    return found


def another_interface(reason: str) -> ValueError:
    return ValueError(
        f"the installed xllamacpp {reason}: it isn't a version that moyun knows; install the one in constraints.txt "
        f"({TESTED}), or use backend=torch"
    )


class LlamaModel:
    """The weights of a .gguf file. They are freed with this object."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for what llama.cpp can't load."""
        self.library = library()
        self.model = self.library.llama_model_load_from_file(
            str(path).encode(), self.library.llama_model_default_params()
        )
        if not self.model:
            raise CheckpointError(f"llama.cpp can't load {path}: it is damaged, or made for a newer version")
        vocabulary = self.library.llama_model_get_vocab(self.model)
        self.vocab_size: int = self.library.llama_vocab_n_tokens(vocabulary)

    def __del__(self) -> None:
        if getattr(self, "model", None):
            self.library.llama_model_free(self.model)


class LlamaContext:
    """The keys and values of some texts ("sequences", numbered from 0), and room to compute in. `close` frees it."""

    def __init__(self, model: LlamaModel, sequences: int, length: int, batch: int, threads: int) -> None:
        """length: the most tokens of a sequence; batch: the most tokens of all of them in one call of `decode`."""
        self.model, self.library = model, model.library
        parameters = self.library.llama_context_default_params()
        parameters.n_ctx = sequences * -(-length // 256) * 256  # llama.cpp rounds a sequence's share up to this
        parameters.n_batch = max(batch, sequences)
        parameters.n_seq_max = sequences
        self.context = self.library.llama_init_from_model(model.model, parameters)
        if not self.context:
            raise MemoryError(f"llama.cpp has no room for {sequences} texts of {length} tokens; give it fewer at once")
        self.library.llama_set_n_threads(self.context, threads, threads)
        self.batch = self.library.llama_batch_init(parameters.n_batch, 0, 1)
        self.refuse_another_interface(parameters)

    def refuse_another_interface(self, parameters: ContextParameters) -> None:
        for name in ("n_ctx", "n_batch", "n_seq_max"):
            found = getattr(self.library, f"llama_{name}")(self.context)
            if found != getattr(parameters, name):
                raise another_interface(f"takes {name} for {found}, not {getattr(parameters, name)}")
        batch = self.batch
        if (
            batch.n_tokens
            or batch.embd
            or not all((batch.token, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits))
        ):
            raise another_interface("lays out llama_batch otherwise")

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> np.ndarray:
        """(id, position, sequence, whether its logits are wanted) … → the logits wanted, (rows, V) float32."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if code := self.library.llama_decode(self.context, batch):
            raise RuntimeError(f"llama.cpp failed in llama_decode (code {code})")
        shape = (self.model.vocab_size,)
        wanted_at = [i for i, (*_, wanted) in enumerate(tokens) if wanted]
        pointers = (self.library.llama_get_logits_ith(self.context, i) for i in wanted_at)
        return np.stack([np.ctypeslib.as_array(pointer, shape) for pointer in pointers])

    def close(self) -> None:
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.context)
