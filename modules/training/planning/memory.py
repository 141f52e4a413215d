"""What a training step needs of a device's memory, in closed form: nothing is built, so any size can be asked for.

Letters as in decoder.py, and t: tensor_parallel. Each term stands for allocations that torch's profiler shows in a
step on the CPU (docs/sizes.md compares the sum with what was measured); the terms of several devices follow from what
the strategies keep where. GPUs need a little less: their dropout masks take a byte, and attention with dropout keeps
no scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ...config.model import ModelConfig
from ...config.training import TrainerConfig
from ...model.attention import MATERIALIZED_LENGTH
from ...model.linear import CHUNK
from ...model.loss import GPU_LOGITS, SOFTMAX_ROWS
from ..optimizer import OPTIMIZERS, Shape
from ..precision import compute_format, on_gpu

WEIGHT_BYTES = {"auto": 4, "32-true": 4, "bf16-mixed": 4, "bf16-true": 2}
"""Of a weight by trainer.precision; its gradient and each number of optimizer state take the same."""

ACTIVATION_BYTES = {"auto": 4, "32-true": 4, "bf16-mixed": 2, "bf16-true": 2}
"""Of a number that goes into a matrix product or comes out of it. auto: as long as it isn't settled, the most."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes a device. The parts don't all exist at once: their sum is more than the peak."""

    weights: int
    gradients: int
    optimizer: int
    """What the optimizer keeps from step to step: for AdamW two moments."""
    activations: int
    """What a forward pass keeps for the backward pass."""
    temporary: int
    """What is alive beside those when memory peaks: logits, gradients of activations, gathered layers."""
    peak: int


class StepMemory:
    """A step's need, by `memory`; every other method returns one term of it, in bytes on one device."""

    def __init__(
        self,
        model: ModelConfig,
        trainer: TrainerConfig,
        document_lengths: Sequence[int],
        accumulates: bool = True,
        adapter_parameters: int | None = None,
        optimizer: str = "adamw",
    ) -> None:
        """The step's largest micro-batch has documents of these lengths (equal ones side by side).

        accumulates: a step has several micro-batches, so gradients are there already while a forward pass runs.
        adapter_parameters: only so many are trained, beside the model's own (LoRA); unset: the model's own are.
        """
        assert model.vocab_size
        self.model, self.trainer = model, trainer
        self.adapter_parameters, self.optimizer = adapter_parameters, OPTIMIZERS[optimizer]
        self.parts = trainer.tensor_parallel
        self.weight = WEIGHT_BYTES[trainer.precision]
        self.activation = ACTIVATION_BYTES[trainer.precision]
        # FSDP gathers weights in bf16 (precision.compute_format): there nothing is cast.
        self.mixed = self.activation != self.weight and compute_format(trainer) is None
        self.gathered_weight = self.weight if self.mixed else self.activation
        self.sharded = trainer.strategy == "fsdp" and trainer.data_parallel > 1
        # DDP's buckets hold all gradients from the first step on, also between steps.
        self.accumulates = accumulates or (trainer.data_parallel > 1 and not self.sharded)
        self.tokens = sum(document_lengths)
        self.runs = [(len(list(group)), length) for length, group in groupby(document_lengths)]
        self.hidden = self.tokens * model.hidden_size
        c = model.hidden_size
        # Row-parallel biases, LayerNorms and positions are whole on each device, everything else is cut.
        self.layer_parameters = (12 * c * c + 7 * c) / self.parts + 6 * c
        self.embedding = model.vocab_size * c / self.parts
        self.root_parameters = self.embedding + model.max_position_embeddings * c + 2 * c

    def memory(self) -> TrainingMemory:
        shards = self.trainer.data_parallel if self.sharded else 1
        own = (self.model.num_hidden_layers * self.layer_parameters + self.root_parameters) / shards
        adapters = 4 * (self.adapter_parameters or 0) / (self.parts * shards)  # float32 beside weights of any type
        weights = own * self.weight + adapters
        gradients = own * self.weight if self.adapter_parameters is None else adapters
        kept = self.model.num_hidden_layers * self.kept_by_layer() + self.kept_outside_layers()
        highest = max(self.moments(gradients, kept), key=sum)
        state = self.optimizer_state() / shards
        fixed = weights + state + self.gathered()
        return TrainingMemory(
            weights=round(weights),
            gradients=round(gradients),
            optimizer=round(state),
            activations=round(kept),
            temporary=round(highest[2] + self.gathered()),
            peak=round(fixed + sum(highest)),
        )

    def moments(self, gradients: float, kept: float) -> list[tuple[float, float, float]]:
        """Gradients, activations and temporary bytes at each point of a step where memory may peak, in order."""
        earlier = gradients if self.accumulates else 0.0
        # The head's waits for the embedding's own, as they are tied; adapters leave both frozen.
        head_gradient = self.embedding * self.gathered_weight if self.adapter_parameters is None else 0.0
        loss = self.hidden * self.activation + head_gradient  # what LinearCrossEntropy keeps
        in_layer = self.recomputed_by_layer() + self.layer_backward() + head_gradient
        one_layer = self.kept_by_layer()
        first_layer_gradients = gradients - head_gradient if not self.accumulates else gradients
        return [
            (earlier, kept, loss + self.hidden * self.activation + self.logits()),
            (earlier, kept, 2 * loss),  # multiplied by the gradient of the loss: a copy of both
            (earlier, kept, in_layer),
            (max(first_layer_gradients, 0), one_layer, in_layer),
            (gradients, 0, head_gradient * (2 if self.accumulates else 1) + self.hidden * self.gathered_weight),
            (gradients, 0, self.optimizer_temporary()),
        ]

    def optimizer_state(self) -> float:
        if self.adapter_parameters is not None:  # matrices of layers, of which any shape takes as much
            return 4 * self.optimizer.state((self.adapter_parameters,), True) / self.parts
        return self.weight * sum(count * self.optimizer.state(shape, hidden) for shape, hidden, count in self.shapes())

    def optimizer_temporary(self) -> float:
        """For the dearest of the parameters, which are updated one by one, and for that gathered from FSDP's shares."""
        if self.adapter_parameters is not None:
            return 0.0
        return self.weight * max(self.optimizer.temporary(shape, hidden) for shape, hidden, _ in self.shapes())

    def shapes(self) -> Iterator[tuple[Shape, bool, int]]:
        """Parameters on one device before FSDP cuts them: shape, whether it is a matrix of a layer, how many of it."""
        c, parts, layers = self.model.hidden_size, self.parts, self.model.num_hidden_layers
        for matrix in ((3 * c / parts, c), (c, c / parts), (4 * c / parts, c), (c, 4 * c / parts)):
            yield matrix, True, layers
        yield (c,), False, 6 * layers + 2
        yield (7 * c / parts,), False, layers
        yield (self.model.vocab_size / parts, c), False, 1  # type: ignore[operator]
        yield (self.model.max_position_embeddings, c), False, 1

    def kept_by_layer(self) -> float:
        a = self.hidden * self.activation
        if self.trainer.activation_checkpointing == "full":
            return a  # the layer's input
        if self.trainer.activation_checkpointing == "selective":
            # Input; attention.dense; query_key_value and dense_h_to_4h; attention, unless it is computed by products.
            kept = self.fused_attention() * (a / self.parts + self.attention_statistics())
            return 2 * a + 7 * a / self.parts + kept + (self.model.hidden_dropout_prob > 0) * a
        return self.kept_without_checkpointing()

    def kept_without_checkpointing(self) -> float:
        """LayerNorms' inputs and outputs; query, key, value; attention; before and after GELU; cast weights."""
        a = self.hidden * self.activation
        attention = a / self.parts * (2 if len(self.runs) > 1 else 1)  # several runs are concatenated: a copy
        masks = 2 * a if self.model.hidden_dropout_prob else 0.0
        statistics = self.attention_statistics() + 16 * self.tokens  # mean and deviation of two LayerNorms
        return (
            4 * a
            + 11 * a / self.parts
            + attention
            + masks
            + statistics
            + self.attention_weights()
            + self.cast_weights()
        )

    def attention_statistics(self) -> float:
        """Each head's logarithm of the softmax's denominator."""
        return 4 * self.tokens * self.model.num_attention_heads / self.parts

    def fused_attention(self) -> float:
        """The share of tokens whose attention is a fused kernel: not under dropout, nor in attention.py's own way."""
        if self.model.attention_probs_dropout_prob:
            return 0.0
        return 1 - sum(count * length for count, length in self.materialized_runs()) / self.tokens

    def materialized_runs(self) -> list[tuple[int, int]]:
        """Those that attention.MaterializedAttention takes."""
        on_cpu = self.activation == 2 and not on_gpu(self.trainer)
        return [run for run in self.runs if on_cpu and run[1] <= MATERIALIZED_LENGTH]

    def attention_weights(self) -> float:
        """Softmax of each head, (T, T), for attention by products; under dropout, which has no fused kernel either, in
        float32, beside the mask and the product of both, and with query, key and value.
        """
        heads = self.model.num_attention_heads / self.parts
        if self.model.attention_probs_dropout_prob:
            squares = sum(count * length**2 for count, length in self.runs)
            return 3 * 4 * squares * heads + 3 * self.hidden * (4 - self.activation) / self.parts
        return self.activation * heads * sum(count * length**2 for count, length in self.materialized_runs())

    def kept_outside_layers(self) -> float:
        """The last LayerNorm's input, the embeddings' dropout mask, ids, labels and positions."""
        mask = self.hidden * self.gathered_weight if self.model.hidden_dropout_prob else 0
        return self.hidden * self.activation + mask + 40 * self.tokens

    def recomputed_by_layer(self) -> float:
        """What checkpointing has dropped of a layer, at hand again while its backward pass runs."""
        if self.trainer.activation_checkpointing == "none":
            return 0.0
        again = self.kept_without_checkpointing() - self.kept_by_layer()
        return again + (self.hidden * self.activation if self.trainer.activation_checkpointing == "selective" else 0.0)

    def layer_backward(self) -> float:
        """Gradients of a layer's output and, four times as wide, of GELU's; that of the largest matrix."""
        a = self.hidden * self.activation
        matrix = 4 * self.model.hidden_size**2 / self.parts * (self.activation + (self.weight if self.mixed else 0))
        return a + 4 * a / self.parts + matrix

    def logits(self) -> float:
        """A chunk's logits beside the chunk before, which Python still holds; or its softmax in float32.

        In mixed precision beside the embeddings' copy, and at the end of a chunk its part of their gradient.
        """
        assert self.model.vocab_size
        vocabulary = self.model.vocab_size / self.parts
        gpu = on_gpu(self.trainer)
        chunk = int(GPU_LOGITS / vocabulary) if gpu else CHUNK
        rows = min(self.tokens, chunk)
        following = min(max(self.tokens - chunk, 0), chunk)
        softmax = 8 * rows if gpu or self.parts > 1 else 4 * min(rows, SOFTMAX_ROWS)
        copies = 2 * self.embedding if self.mixed else 0.0
        at_its_end = rows * self.activation * vocabulary + max(softmax * vocabulary, copies)
        return copies + max((rows + following) * self.activation * vocabulary, at_its_end)

    def cast_weights(self) -> float:
        """A layer's matrices in bf16, kept for its backward pass."""
        return 2 * 12 * self.model.hidden_size**2 / self.parts if self.mixed else 0.0

    def gathered(self) -> float:
        """FSDP: embeddings whole for the step; two layers (the next is fetched meanwhile); one layer's gradient."""
        if not self.sharded:
            return 0.0
        return (self.root_parameters + 3 * self.layer_parameters) * self.activation
