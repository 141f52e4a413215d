"""The loss, its gradient, the optimizer and its schedule; golden losses of a whole short training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import datasets
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from modules.checkpoint.training_checkpoint import trained_weights
from modules.config.data import DataConfig
from modules.config.loader import load_config
from modules.config.training import TrainConfig
from modules.data.datamodule import TextDataModule
from modules.data.encoding import encode_rows
from modules.data.packing import ShuffledSteps, make_step
from modules.model import loss as loss_module
from modules.model.decoder import build_decoder, meta_decoder
from modules.model.linear import CHUNK
from modules.model.loss import IGNORED, linear_cross_entropy
from modules.tokenizer.tokenizer import Tokenizer
from modules.training.fit import fit as fit_training
from modules.training.lightning_module import LanguageModel
from modules.training.nonfinite import NonFiniteLossError
from modules.training.optimizer import OPTIMIZERS, SCHEDULES, learning_rate_factor, noam
from modules.training.planning.plan import make_plan
from modules.training.planning.recipe import POETRY, fill
from modules.training.setup import TrainingSetup
from tests.helpers.models import ROOT, make_config, make_decoder

GOLDEN = ROOT / "tests" / "files" / "golden" / "losses.txt"


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunked_loss_equals_the_plain_one(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "compiled_gradient", lambda: loss_module.gradient_of)  # as a compiler takes it
    generator = torch.Generator().manual_seed(0)
    tokens = 2 * CHUNK + 17
    hidden = torch.randn(tokens, 32, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 32, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, 50, (tokens,), generator=generator)
    labels[::3] = IGNORED
    trained = (labels != IGNORED).nonzero()[:, 0] if compiled else None
    loss = linear_cross_entropy(hidden, weight, labels, trained, compiled)
    found = torch.autograd.grad(loss * 0.5, (hidden, weight))
    plain = F.cross_entropy((hidden @ weight.T).float(), labels, ignore_index=IGNORED, reduction="sum")
    expected = torch.autograd.grad(plain * 0.5, (hidden, weight))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert float(loss) == pytest.approx(float(plain), rel=tolerance)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < tolerance
    frozen = linear_cross_entropy(hidden, weight.detach(), labels, trained, compiled)
    (beside_frozen,) = torch.autograd.grad(frozen * 0.5, hidden)
    assert torch.equal(beside_frozen, found[0])


def test_the_loss_of_bfloat16_is_summed_in_float32() -> None:
    """Beside float32 weights, whose gradient isn't rounded chunk by chunk."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2 * CHUNK, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(50, 32, generator=generator).bfloat16().float().requires_grad_()
    labels = torch.randint(0, 50, (2 * CHUNK,), generator=generator)
    loss = linear_cross_entropy(hidden, weight, labels)
    found = torch.autograd.grad(loss, (hidden, weight))
    assert [loss.dtype, *(one.dtype for one in found)] == [torch.float32, torch.bfloat16, torch.float32]
    logits = (hidden.float() @ weight.T).bfloat16().float()
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, labels, reduction="sum")), rel=1e-6)


def gradients(module: LanguageModel, step: Any) -> torch.Tensor:
    module.zero_grad()
    for batch in step.micro_batches:
        (module._step(batch) / step.trained_tokens).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_a_steps_gradient_does_not_depend_on_how_it_is_split(tokenizer: Tokenizer) -> None:
    sources = ["春", "白日依山尽，黄河入海流。", "山" * 40, "床前明月光", "风", "疑是地上霜"]
    rows = datasets.Dataset.from_dict({"src_txt": sources, "tgt_txt": [text[::-1] for text in sources]})
    documents = encode_rows(rows, tokenizer.with_prompt_template("{src_txt}"), 64)
    module = LanguageModel(make_decoder(make_config(tokenizer.vocab_size)), TrainConfig(max_steps=1), 1e-3, 1)
    chosen = np.arange(len(documents))
    whole = gradients(module, make_step(documents, chosen, 10_000))
    for budget in (1, 30, 80):
        step = make_step(documents, chosen, budget)
        assert len(step.micro_batches) > 1
        assert float((gradients(module, step) - whole).abs().max()) <= 1e-6
    over_ranks = sum(gradients(module, make_step(documents, chosen, 50, rank, 2)) for rank in range(2))
    assert float((over_ranks - whole).abs().max()) <= 1e-6


def test_training_takes_the_same_step_however_it_is_split(
    tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path
) -> None:
    found = []
    for budget in (10_000, 150):
        module, data = short_training(tokenizer, rows)
        data.micro_batch_tokens = budget
        losses = fit(module, data, 4, tmp_path).rows
        found.append([(row["train/loss"], row["grad_norm"]) for row in losses if "lr" in row])
    assert len(data.train_dataloader().dataset[0].micro_batches) > 1  # type: ignore[attr-defined]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_loss_is_that_of_each_row_alone(tokenizer: Tokenizer, rows: datasets.Dataset) -> None:
    decoder = make_decoder(make_config(tokenizer.vocab_size))
    documents = encode_rows(rows.select(range(6)), tokenizer, 64, "split")
    module = LanguageModel(decoder, TrainConfig(max_steps=1), 1e-3, 1)
    (batch,) = make_step(documents, np.arange(len(documents)), 10_000).micro_batches
    expected = 0.0
    with torch.no_grad():
        for start, end in zip(documents.offsets, documents.offsets[1:], strict=False):
            ids = torch.from_numpy(documents.ids[start:end].astype(np.int64))
            expected += float(F.cross_entropy(decoder(ids[None, :-1])[0], ids[1:], reduction="sum"))
        assert float(module._step(batch)) == pytest.approx(expected, rel=1e-5)


def poetry() -> Any:
    """finetune's configuration, with what the poetry recipe says of it."""
    config = load_config("finetune", ["model=tiny", "recipe=poetry"])
    fill(config, POETRY)
    return config


def test_noam_gives_the_formulas_numbers() -> None:
    config = poetry().train
    assert (config.schedule, config.learning_rate, config.warmup_steps) == ("noam", 3e-4, 100)
    rates = {step: 3e-4 * learning_rate_factor(step, config, total_steps=9999) for step in (0, 49, 99, 399, 9999)}
    assert rates == pytest.approx({0: 3e-7, 49: 1.5e-5, 99: 3e-5, 399: 1.5e-5, 9999: 3e-6}, rel=1e-12)
    assert noam(100, config, total_steps=9999) == 101**-0.5


def test_recipe_is_the_original_model_cards() -> None:
    config = poetry()
    train = config.train
    assert (train.batch_size, train.batch_tokens, train.max_epochs, train.max_steps) == (16, None, 10, None)
    assert (train.weight_decay, train.beta1, train.beta2, train.epsilon) == (0.01, 0.9, 0.999, 1e-8)  # torch's own
    assert config.data.path == "prepared/sample/quatrains"


def test_cosine_warms_up_peaks_and_ends_where_it_should() -> None:
    config = TrainConfig(max_steps=1, schedule="cosine", warmup_steps=10, min_learning_rate_ratio=0.1)
    factors = [learning_rate_factor(step, config, total_steps=110) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0 == max(factors)
    assert factors[59] == pytest.approx(0.55)
    assert factors[109] == pytest.approx(0.1)
    assert sorted(factors[9:], reverse=True) == factors[9:]


def test_wsd_warms_up_stays_and_decays_to_its_end() -> None:
    config = TrainConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.25, min_learning_rate_ratio=0.2)
    factors = [learning_rate_factor(step, config, total_steps=100) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(factors[9:75]) == {1.0}
    assert factors[75:] == pytest.approx([1 - 0.8 * (step + 1) / 25 for step in range(25)])


@pytest.mark.parametrize(("key", "known"), [("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)])
def test_configuration_names_what_there_is(key: str, known: dict[str, Any]) -> None:
    hint = get_type_hints(TrainConfig)[key]
    literal = get_args(hint)[0] if type(None) in get_args(hint) else hint
    assert get_args(literal) == tuple(known)


def test_muon_has_the_layers_matrices_and_adamw_the_rest(decoder: Any) -> None:
    module = LanguageModel(decoder, TrainConfig(optimizer="muon", weight_decay=0.3), 1e-3, 1)
    matrices, embeddings, rest = module.configure_optimizers()["optimizer"].param_groups
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    assert all("layers." in names[id(p)] and p.dim() == 2 for p in matrices["params"])
    assert [names[id(p)] for p in embeddings["params"]] == ["word_embeddings.weight", "position_embeddings.weight"]
    assert [group["weight_decay"] for group in (matrices, embeddings, rest)] == [0.3, 0.3, 0.0]
    assert sum(len(group["params"]) for group in (matrices, embeddings, rest)) == len(names)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_only_matrices_decay(optimizer: Any, decoder: Any) -> None:
    module = LanguageModel(decoder, TrainConfig(max_steps=1, weight_decay=0.3, optimizer=optimizer), 1e-3, 1)
    decaying, rest = module.configure_optimizers()["optimizer"].param_groups
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert {p.dim() for p in decaying["params"]} == {2}
    assert {p.dim() for p in rest["params"]} == {1}
    assert len(decaying["params"]) + len(rest["params"]) == len(list(decoder.parameters()))


class Losses(pl.loggers.logger.Logger):
    name, version = "losses", "0"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics | {"step": step or 0})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def fit(module: LanguageModel, data: TextDataModule, steps: int, folder: Path) -> Losses:
    losses = Losses()
    pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=losses, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, val_check_interval=steps, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        default_root_dir=folder,
    ).fit(module, data)  # fmt: skip
    return losses


def short_training(
    tokenizer: Tokenizer, rows: datasets.Dataset, **changes: Any
) -> tuple[LanguageModel, TextDataModule]:
    config = TrainConfig(max_steps=30, warmup_steps=5)
    decoder = build_decoder(make_config(tokenizer.vocab_size), seed=0).train()
    splits = {"train": rows, "validation": rows.select(range(20))}
    data = TextDataModule(
        splits, tokenizer, DataConfig(sequence_length=96, over_long="split"), batch_size=16, micro_batch_tokens=512
    )
    return LanguageModel(decoder, config, **({"learning_rate": 3e-3, "total_steps": 30} | changes)), data


@pytest.mark.parametrize(("number_format", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-3)], ids=str)
def test_golden_losses(
    number_format: torch.dtype, tolerance: float, tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path
) -> None:
    """A refactoring that leaves these alone has changed nothing; one that means to change them rewrites the file.

    In bfloat16 they stay as near to float32's as a processor's own order of adding up lets them.
    """
    module, data = short_training(tokenizer, rows)
    module.decoder.compute_dtype = number_format
    losses = fit(module, data, 30, tmp_path)
    lines = [f"{row['step']} {row['train/loss']:.6f} {row['grad_norm']:.6f}" for row in losses.rows if "lr" in row]
    (tmp_path / "losses.txt").write_text("\n".join(lines) + "\n")
    found, golden = np.loadtxt(tmp_path / "losses.txt"), np.loadtxt(GOLDEN)
    np.testing.assert_array_equal(found[:, 0], golden[:, 0])
    np.testing.assert_allclose(found[:, 1], golden[:, 1], rtol=tolerance)
    np.testing.assert_allclose(found[:, 2], golden[:, 2], rtol=100 * tolerance)
    assert found[-1, 1] < found[0, 1] - 0.8


def test_each_epoch_takes_every_row_once_in_another_order(
    tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = short_training(tokenizer, rows)
    seen: list[int] = []
    step_of = ShuffledSteps.chosen

    def recorded(self: ShuffledSteps, index: int) -> np.ndarray:
        seen.extend(chosen := step_of(self, index))
        return chosen

    monkeypatch.setattr(ShuffledSteps, "chosen", recorded)
    fit(module, data, 2 * data.steps_per_epoch, tmp_path)
    count = len(data.documents["train"])
    first, second = seen[:count], seen[count : 2 * count]
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second


def test_validation_weighs_tokens(tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path) -> None:
    module, data = short_training(tokenizer, rows)
    row = fit(module, data, 1, tmp_path).rows[-1]
    documents = data.documents["validation"]
    (batch,) = make_step(documents, np.arange(len(documents)), 100_000).micro_batches
    with torch.no_grad():
        nll = float(module._step(batch))
    characters, ends = int(documents.characters.sum()), int(documents.ended.sum())
    assert row["val/loss"] == pytest.approx(nll / batch.trained_tokens, rel=1e-5)
    assert row["val/perplexity"] == pytest.approx(math.exp(nll / batch.trained_tokens), rel=1e-4)
    assert row["val/perplexity_per_char"] == pytest.approx(math.exp(nll / (characters + ends)), rel=1e-4)


def test_a_non_finite_gradient_stops_before_the_step(
    tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path
) -> None:
    module, data = short_training(tokenizer, rows)
    module.decoder.word_embeddings.weight.register_hook(lambda gradient: gradient * math.inf)
    before = module.decoder.word_embeddings.weight.detach().clone()
    with pytest.raises(NonFiniteLossError, match=r"gradient norm is (nan|inf) at step 0"):
        fit(module, data, 3, tmp_path)
    assert torch.equal(module.decoder.word_embeddings.weight, before)


def test_the_weights_that_validate_best_are_kept(tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path) -> None:
    """Trained on one row alone, the loss on others rises: an earlier step is best."""
    config = load_config("pretrain", ["model=tiny", "trainer.progress_bar=false", "train.sample_prompts=[]"])
    config.train = TrainConfig(max_steps=30, warmup_steps=1, schedule="constant", validate_every_n_steps=10)
    splits = {"train": rows.select([0]), "validation": rows.select(range(1, 40))}
    data = TextDataModule(splits, tokenizer, DataConfig(sequence_length=96, over_long="split"), batch_size=8)
    model = make_config(tokenizer.vocab_size)
    plan = dataclasses.replace(make_plan(config, model, data), learning_rate=1e-2)
    training = TrainingSetup(None, splits, tokenizer, model, data, plan)
    losses = Losses()
    checkpoint, metrics = fit_training("pretrain", config, training, tmp_path, losses)  # type: ignore[arg-type]
    validations = {row["step"]: row["val/loss"] for row in losses.rows if "val/loss" in row}
    assert sorted(validations) == [10, 20, 30]
    best = min(validations, key=lambda step: validations[step])
    assert metrics["val/loss"] == validations[best] < validations[30]
    assert checkpoint.name == f"step={best}.ckpt"
    decoder = meta_decoder(model)
    weights = {name: tensor.read() for name, tensor in trained_weights(checkpoint).items()}
    decoder.load_state_dict(weights, assign=True)
    module = LanguageModel(decoder, config.train, learning_rate=1e-2, total_steps=30)
    documents = data.documents["validation"]
    with torch.no_grad():
        steps = [make_step(documents, np.array([i]), 512).micro_batches[0] for i in range(len(documents))]
        nll = sum(float(module._step(step)) for step in steps)
    assert nll / int(documents.trained_tokens.sum()) == pytest.approx(validations[best], rel=1e-5)
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_non_finite_loss_stops_before_the_step(tokenizer: Tokenizer, rows: datasets.Dataset, tmp_path: Path) -> None:
    module, data = short_training(tokenizer, rows)
    with torch.no_grad():
        module.decoder.transformer.final_layernorm.weight[0] = math.nan
    before = {name: tensor.clone() for name, tensor in module.decoder.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"nan at step 0 \(learning rate 0.0006, training documents \d+ “"):
        fit(module, data, 3, tmp_path)
    for name, tensor in module.decoder.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
