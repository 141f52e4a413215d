"""The model folder: complete, pickle-free, and either wholly there or not at all.

model.safetensors       weights, by the decoder's parameter names
model.yaml              architecture (config.ModelConfig)
tokenizer.json          with tokenizer_config.json: the tokenizer and its prompt template
run.yaml                where it comes from: resolved config, data, versions
golden.safetensors      a prompt's ids and the logits of its next token, to prove a copy or a reader right; its
                        metadata says what the weights and the tokenizer hash to
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .config import ModelConfig, load_model_config, to_yaml
from .decoder import Decoder
from .row_files import sha256_of
from .tokenizer import Tokenizer, load_tokenizer

FILES = (
    "golden.safetensors",
    "model.safetensors",
    "model.yaml",
    "run.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
)
GOLDEN_PROMPT = "白日依山尽，"


class CheckpointError(ValueError):
    """A model folder that is incomplete, damaged or of another shape than it says."""


def build_decoder(config: ModelConfig, seed: int) -> Decoder:
    """Fresh weights, laid out on the meta device first so that they are written once."""
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.to_empty(device="cpu")
    decoder.init_weights(torch.Generator().manual_seed(seed))
    return decoder


def save_model(folder: Path, decoder: Decoder, tokenizer: Tokenizer, run: Mapping[str, Any]) -> Path:
    """Writes a model folder under a temporary name, syncs it to disk, then renames it.

    Raises FileExistsError rather than overwrite.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; a model folder is never overwritten: choose another name")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
        save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
        architecture = {name: getattr(decoder.config, name) for name in ModelConfig.__dataclass_fields__}
        (draft / "model.yaml").write_text(to_yaml(architecture), encoding="utf-8")
        (draft / "run.yaml").write_text(to_yaml(run), encoding="utf-8")
        tokenizer.save(draft)
        hashes = {"weights": sha256_of(draft / "model.safetensors"), "tokenizer": tokenizer.fingerprint}
        save_file(golden(decoder, tokenizer), draft / "golden.safetensors", metadata=hashes)
        for path in [*draft.iterdir(), draft]:
            sync(path)
        draft.rename(folder)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def default_device() -> torch.device:
    """The accelerator, where there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> Decoder:
    """A model folder's decoder in eval mode. Raises CheckpointError naming what is missing, extra or misshapen."""
    folder = Path(folder)
    check_files(folder)
    with torch.device("meta"):
        decoder = Decoder(load_model_config(folder / "model.yaml"))
    weights, _ = read_tensors(folder / "model.safetensors", device)
    complaints = list(differences(decoder.state_dict(), weights))
    if complaints:
        raise CheckpointError(f"{folder / 'model.safetensors'} doesn't fit model.yaml: " + "; ".join(complaints[:5]))
    decoder.load_state_dict(weights, strict=True, assign=True)
    return decoder.requires_grad_(True).eval()


def read_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        return load_file(path, device=str(device)), metadata or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again from where it came from") from error


def check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is no complete model folder: {', '.join(missing)} missing")


def differences(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> Any:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing"
        elif name not in expected:
            yield f"{name} is not part of this architecture"
        elif expected[name].shape != found[name].shape:
            yield f"{name} is {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"


@torch.no_grad()
def golden(decoder: Decoder, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """{"input_ids": (1, T) int64, "logits": (V,) float32}: what the model says after a fixed prompt."""
    ids = tokenizer.encode_prompt(GOLDEN_PROMPT)[: decoder.config.max_position_embeddings]
    input_ids = torch.tensor([ids or [tokenizer.end_of_text_id]])
    training, device = decoder.training, decoder.word_embeddings.weight.device
    logits = decoder.eval()(input_ids.to(device))[0, -1].float().cpu()
    decoder.train(training)
    return {"input_ids": input_ids, "logits": logits.contiguous()}


def verify_model(folder: str | Path, tolerance: float = 1e-3) -> float:
    """Recomputes the golden logits and returns the largest difference; CheckpointError where it is too large.

    One prompt doesn't touch every weight and token, so their hashes are compared too.
    """
    folder = Path(folder)
    decoder, tokenizer = load_model(folder), load_tokenizer(folder)
    expected, hashes = read_tensors(folder / "golden.safetensors")
    if hashes.get("tokenizer") != tokenizer.fingerprint:
        raise CheckpointError(f"{folder}: the tokenizer or prompt template differs from the one it was saved with")
    if hashes.get("weights") != sha256_of(folder / "model.safetensors"):
        raise CheckpointError(f"{folder}: model.safetensors differs from what was saved; copy the folder again")
    found = golden(decoder, tokenizer)
    if {name: t.shape for name, t in found.items()} != {name: t.shape for name, t in expected.items()}:
        raise CheckpointError(f"{folder}: golden.safetensors is of another model; copy the folder again")
    difference = float((found["logits"] - expected["logits"]).abs().max())
    if not difference <= tolerance:  # also catches NaN
        raise CheckpointError(f"{folder}: logits differ by {difference:.2g} from those it was saved with")
    return difference
