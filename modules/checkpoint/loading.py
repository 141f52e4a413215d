"""Models from folders of any format: opened, loaded, verified."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import torch

from ..config.base import no_such_model
from ..model.decoder import Decoder, meta_decoder
from ..model.quantization import prepare_for_inference
from ..system.checksums import sha256_of
from ..system.hardware import default_device
from ..system.paths import expanded
from ..tokenizer.tokenizer import Tokenizer, load_tokenizer
from . import formats
from .model_folder import FILES, read_model
from .verification import golden_difference, saved_hashes
from .weights import CheckpointError, StoredModel, files_hash, weights_hash


def check_folder(folder: Path) -> None:
    """Raises CheckpointError for what can't be a model folder of any format."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the folder that it lies in")
    if not folder.is_dir():
        raise CheckpointError(no_such_model(folder))
    if not any(folder.iterdir()):
        raise CheckpointError(f"{folder} is empty, and no model folder")


def open_model(folder: str | Path) -> StoredModel:
    """Architecture and weights of a folder of any format, still on disk. Raises CheckpointError for what it lacks."""
    folder = Path(expanded(str(folder)))
    check_folder(folder)
    if (foreign := formats.format_of(folder)) != "moyun":
        return formats.read(folder, foreign)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        hint = "; nor has it a config.json, as other formats do" if "model.yaml" in missing else ""
        if checkpoints := sorted(folder.glob("*.ckpt")):
            hint = f"; one of its checkpoints would do: {checkpoints[-1]}"
        raise CheckpointError(f"{folder} is no complete model folder: {', '.join(missing)} missing{hint}")
    return read_model(folder)


def open_verified(folder: Path) -> tuple[StoredModel, Tokenizer, str]:
    """A model still on disk, its tokenizer, and the hash of its weights (`verified_hash`).

    Raises CheckpointError for a damaged folder, ValueError where model and tokenizer don't belong together.
    """
    model, tokenizer, digest = open_model(folder), open_tokenizer(folder), verified_hash(folder)
    if (model.config.vocab_size or 0) < tokenizer.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} entries, the model only {model.config.vocab_size}; "
            "they don't belong together"
        )
    return model, tokenizer, digest


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a model folder of any format; that of a training checkpoint lies in the folder above."""
    folder = Path(folder)
    return load_tokenizer(folder.parent if formats.is_training_checkpoint(folder) else folder)


def load_model(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """A folder's decoder in eval mode; dtype None: in the number format of the file. Raises CheckpointError."""
    model = open_model(folder)
    decoder = meta_decoder(model.config)
    weights = {name: tensor.read().to(device, dtype) for name, tensor in model.weights.items()}
    decoder.load_state_dict(weights, strict=True, assign=True)
    return decoder.to(device).requires_grad_(True).eval()  # buffers that no file holds are moved too


def load_for_inference(folder: str | Path, dtype: str = "auto") -> Decoder:
    """A decoder to generate and score with, on the accelerator if there is one; on a CPU laid out for speed.

    dtype: float32, bfloat16, int8 (on a CPU: weights and products in 8 bits, the rest in float32), or auto: as it is
    stored, but float32 for float16 on a CPU, where that is slow and coarse. Raises ValueError for any other.
    """
    device = default_device()
    if dtype not in ("auto", "float32", "bfloat16", "int8"):
        raise ValueError(f"dtype={dtype} must be auto, float32, bfloat16 or int8")
    on_cpu = device.type == "cpu"
    if dtype == "int8" and not on_cpu:
        raise ValueError(f"dtype=int8 is for CPUs, but this process uses {device}; use dtype=bfloat16 there")
    if dtype in ("auto", "int8"):
        stored = reduce(torch.promote_types, {tensor.dtype for tensor in open_model(folder).weights.values()})
        number_format = torch.float32 if stored == torch.float16 and on_cpu and dtype == "auto" else stored
    else:
        number_format = getattr(torch, dtype)
    decoder = load_model(folder, device, number_format)
    return prepare_for_inference(decoder, dtype == "int8") if on_cpu else decoder.requires_grad_(False)


def load_verified(folder: Path, dtype: str = "auto") -> tuple[Decoder, Tokenizer]:
    """`load_for_inference` and the tokenizer. Raises CheckpointError where either isn't what was saved."""
    check_folder(folder)
    tokenizer = open_tokenizer(folder)
    check_unchanged(folder, tokenizer)
    return load_for_inference(folder, dtype), tokenizer


def verify_model(folder: str | Path, tolerance: float = 1e-3) -> float:
    """Recomputes the golden logits and returns the largest difference. Raises CheckpointError where it is too large.

    One prompt doesn't depend on every weight and token, so their hashes are compared too.
    """
    folder = Path(folder)
    model, tokenizer = open_model(folder), open_tokenizer(folder)
    if (foreign := formats.format_of(folder)) != "moyun":
        raise CheckpointError(
            f"{folder} is a {foreign} checkpoint, with nothing to verify it by; make a moyun folder of it first: "
            f"python -m pipelines.convert source={folder} target=NEW_FOLDER"
        )
    check_unchanged(folder, tokenizer)
    difference = golden_difference(folder, model, tokenizer)
    if not difference <= tolerance:  # also catches NaN
        raise CheckpointError(f"{folder}: logits differ by {difference:.2g} from those it was saved with")
    return difference


def require_finite(folder: Path) -> None:
    """ValueError naming the first parameter that holds NaN or infinity."""
    for name, tensor in open_model(folder).weights.items():
        if not tensor.read().isfinite().all():
            raise ValueError(f"{folder}: {name} holds NaN or infinite weights; such a model is not registered")


def model_hash(folder: Path) -> str:
    """SHA-256 of a model folder's weight files, whatever its format (weights.files_hash)."""
    foreign = formats.format_of(folder)
    return weights_hash(folder) if foreign == "moyun" else files_hash(formats.files_of_format(folder, foreign))


def verified_hash(folder: Path) -> str:
    """`model_hash`. Raises CheckpointError where a moyun folder's weights aren't those that were saved.

    A model made from a damaged one would get hashes and golden logits of its own, and seem sound.
    """
    found = model_hash(folder)
    if formats.format_of(folder) == "moyun" and saved_hashes(folder).get("weights") != found:
        raise CheckpointError(f"{folder}: model.safetensors differs from what was saved; copy the folder again")
    return found


def check_unchanged(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError where a moyun folder's tokenizer, model.yaml or weights don't hash to what was saved."""
    if formats.format_of(folder) != "moyun":
        return
    saved, architecture = saved_hashes(folder), sha256_of(folder / "model.yaml")
    if saved.get("tokenizer") != tokenizer.fingerprint:
        raise CheckpointError(f"{folder}: the tokenizer or prompt template differs from the one it was saved with")
    if saved.get("architecture", architecture) != architecture:  # folders of before have no such hash
        raise CheckpointError(f"{folder}: model.yaml differs from what was saved; copy the folder again")
    verified_hash(folder)
