"""One batch for all: rows join and leave, and none notices the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from modules.config.generation import GenerationConfig, LimitsConfig
from modules.inference.server import engine
from modules.inference.server.engine import ActiveSequence, Engine
from modules.inference.server.model_process.messages import Event
from modules.inference.text_generator import TextGenerator, Writer
from modules.model.decoder import Decoder
from modules.model.decoding import decode_graph
from modules.model.decoding.decode_graph import GraphBatch
from modules.model.decoding.token_scores import Scores
from modules.model.kv_cache import KVCache
from modules.model.sampling import decode_step, moved_up, prefill, start
from modules.tokenizer.tokenizer import Tokenizer
from tests.helpers.models import make_config, make_decoder
from tests.helpers.server_tools import Pace, until

PROMPTS = ["白日依山尽，", "春", "", "床前明月光，疑是地上霜。", "hello, 世界\n", "春眠不觉晓，处处闻啼鸟。"]
PARAMETERS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_new_tokens": 30},
    {"seed": 3, "max_new_tokens": 7},
    {"seed": 4, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "max_new_tokens": 24},
    {"seed": 5, "stop": ["。", "山"], "max_new_tokens": 40},
    {"seed": 6, "top_p": 0.5, "max_new_tokens": 1},
    {"seed": 7, "min_p": 0.1, "presence_penalty": 1.0, "frequency_penalty": 0.5, "max_new_tokens": 25},
]


class Desk:
    """Hands jobs to an engine and collects what becomes of them."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, **limits: Any) -> None:
        self.tokenizer = tokenizer
        self.pace = Pace()
        self.hook = decoder.register_forward_pre_hook(self.pace)
        self.engine = Engine(decoder, tokenizer, LimitsConfig(**limits), self.take)
        self.events: dict[ActiveSequence, list[Event]] = {}

    def take(self, events: list[Event]) -> None:
        jobs = list(self.events)
        for event in events:
            self.events[jobs[event.row]].append(event)

    def job(self, prompt: str, stream: bool = False, **parameters: Any) -> ActiveSequence:
        config = GenerationConfig(**parameters)
        writer = Writer(self.tokenizer, config.stop)
        job = ActiveSequence(len(self.events), self.tokenizer.encode_prompt(prompt), config, writer, stream)
        self.events[job] = []
        return job

    def submit(self, prompt: str, **parameters: Any) -> ActiveSequence:
        job = self.job(prompt, **parameters)
        self.engine.submit([job])
        return job

    def end(self, job: ActiveSequence) -> Event:
        until(lambda: self.events[job] and self.events[job][-1].finish)
        return self.events[job][-1]


@pytest.fixture
def desk(decoder: Decoder, tokenizer: Tokenizer) -> Iterator[Desk]:
    desk = Desk(decoder, tokenizer, batch_rows=4, queue_rows=100)
    desk.engine.start()
    yield desk
    desk.engine.stop()
    desk.hook.remove()


@pytest.mark.parametrize(("stream", "graph"), [(False, False), (True, False), (False, True)])
def test_a_row_in_a_busy_batch_becomes_what_it_becomes_alone(
    desk: Desk, decoder: Decoder, tokenizer: Tokenizer, stream: bool, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if graph:  # as on a GPU, in a cache that has to grow
        monkeypatch.setattr(engine, "open_batch", GraphBatch)
        monkeypatch.setattr(decode_graph, "SHORTEST", 8)
    wanted = [(prompt, parameters) for parameters in PARAMETERS for prompt in PROMPTS]
    jobs = []
    for number, (prompt, parameters) in enumerate(wanted):
        jobs.append(desk.submit(prompt, stream=stream, **parameters))
        if number % 7 == 6:  # the rest arrives while these are being written
            until(lambda: jobs[-4].tokens)
    found = ["".join(event.text for event in desk.events[job]) for job in jobs if desk.end(job)]
    generator = TextGenerator(decoder, tokenizer)
    assert found == [generator(prompt, return_full_text=False, **parameters)["text"] for prompt, parameters in wanted]
    assert max(desk.pace.rows) > 4  # prompts were read together
    assert not desk.engine.running


@pytest.mark.parametrize(("stream", "graph"), [(False, False), (True, False), (True, True)])
def test_scores_of_a_busy_batch_are_those_of_each_row_alone(
    desk: Desk, decoder: Decoder, tokenizer: Tokenizer, stream: bool, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with and without scores come and go, and some are scored alone, beside those that are written."""
    if graph:
        monkeypatch.setattr(engine, "open_batch", GraphBatch)
        monkeypatch.setattr(decode_graph, "SHORTEST", 8)
    jobs = []
    for number, (prompt, parameters) in enumerate([(p, given) for given in PARAMETERS for p in PROMPTS]):
        job = desk.job(prompt, stream=stream, **parameters)
        if number % 3:
            job.scores = Scores(number % 3, range(len(job.prompt)))
            job.config.max_new_tokens *= number % 5 != 0
        desk.engine.submit([job])
        jobs.append(job)
        if number % 7 == 6:
            until(lambda: jobs[-4].tokens or desk.events[jobs[-4]])
    generator = TextGenerator(decoder, tokenizer)
    for job in jobs:
        end = desk.end(job)
        found = [score for event in desk.events[job] for score in event.scores]
        if job.scores is None:
            assert not found
            continue
        if not job.config.max_new_tokens:
            assert (end.text, end.finish, job.tokens) == ("", "length", 0)
        assert len(found) - len(job.prompt) - job.tokens in (0, 1)  # the end-of-text that ended it
        (alone,) = generator.score_ids([[score.token for score in found]], job.scores.top)
        assert [score.token for score in found[: len(job.prompt)]] == job.prompt
        assert [score.logprob for score in found[1:]] == pytest.approx([s.logprob for s in alone[1:]], abs=1e-4)
        assert [len(score.top) for score in found[1:]] == [job.scores.top] * (len(found) - 1)


def test_why_a_text_ended(desk: Desk, decoder: Decoder, tokenizer: Tokenizer) -> None:
    text = TextGenerator(decoder, tokenizer)("春", temperature=0.0, max_new_tokens=9, return_full_text=False)["text"]
    first = text[0]
    cases = {"length": {"max_new_tokens": 9}, "stop": {"max_new_tokens": 9, "stop": [first]}}
    for finish, parameters in cases.items():
        assert desk.end(desk.submit("春", temperature=0.0, **parameters)).finish == finish
    # The text's last token may complete a stop text.
    assert desk.end(desk.submit("春", temperature=0.0, max_new_tokens=1, stop=[first])).finish == "stop"
    assert desk.end(desk.submit("春" * 93, seed=1, max_new_tokens=50)).finish == "length"  # no position is left


def test_end_of_text_is_a_stop(decoder: Decoder, tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        prompt = tokenizer.encode_prompt("春")
        end = int(decoder(torch.tensor([prompt]))[0, -1].argmax())
    desk = Desk(decoder, tokenizer)
    desk.engine.tokenizer = type("Ends", (), {"end_of_text_id": end})()
    desk.engine.start()
    assert desk.end(desk.submit("春", temperature=0.0)) == Event(0, "", "stop")
    desk.engine.stop()


def test_a_cancelled_row_is_not_computed_again(desk: Desk) -> None:
    desk.pace.seconds = 0.01
    stays, goes = desk.submit("春", seed=1, max_new_tokens=40), desk.submit("山", seed=1, max_new_tokens=90)
    until(lambda: goes.tokens >= 5)
    desk.engine.cancel([goes])
    written = goes.tokens
    desk.end(stays)
    assert goes.tokens <= written + 1  # what was being computed at that moment
    assert stays.tokens == 40
    assert desk.pace.rows[-5:] == [1] * 5


def test_a_cancelled_job_leaves_the_queue_at_once(desk: Desk) -> None:
    desk.pace.seconds = 0.02
    running = [desk.submit("春", seed=1, max_new_tokens=20) for _ in range(4)]
    until(lambda: all(job.tokens for job in running))
    waiting = desk.submit("山", seed=1)
    desk.engine.cancel([waiting])
    assert not desk.engine.waiting
    desk.end(running[0])
    assert waiting.tokens == 0


def test_a_failing_model_fails_its_rows_and_not_the_next(desk: Desk) -> None:
    desk.pace.fail = True
    jobs = [desk.submit(prompt, seed=1, max_new_tokens=5) for prompt in ("春", "山")]
    assert {desk.end(job).finish for job in jobs} == {"failed"}
    desk.pace.fail = False
    assert desk.end(desk.submit("春", seed=1, max_new_tokens=5)).finish == "length"


@pytest.mark.parametrize("graph", [False, True])
def test_a_prompt_at_which_the_model_fails_fails_alone(
    desk: Desk, decoder: Decoder, tokenizer: Tokenizer, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that run, nor those that are read with it, nor those that are only scored then."""
    if graph:
        monkeypatch.setattr(engine, "open_batch", GraphBatch)
    bad = tokenizer.encode_prompt("山" * 30)

    def fail(module: Any, inputs: tuple[Any, ...]) -> None:
        if inputs[0].flatten().tolist().count(bad[1]) >= 30:
            raise RuntimeError("a kernel failed, says the test")

    hook = decoder.register_forward_pre_hook(fail)
    desk.pace.seconds = 0.01
    running = desk.submit("春", seed=1, max_new_tokens=30)
    until(lambda: running.tokens)
    fails, scored, joins = desk.job("山" * 30, seed=1), desk.job("水", max_new_tokens=0), desk.job("海", seed=2)
    for job in (scored, joins):
        job.scores = Scores(0, range(len(job.prompt)))
    desk.engine.submit([scored, joins, fails])
    assert desk.end(fails).finish == "failed"
    assert [desk.end(job).finish for job in (scored, joins, running)] == ["length"] * 3
    hook.remove()
    generator = TextGenerator(decoder, tokenizer)
    for job, prompt, parameters in ((running, "春", {"seed": 1, "max_new_tokens": 30}), (joins, "海", {"seed": 2})):
        text = "".join(event.text for event in desk.events[job])
        assert text == generator(prompt, return_full_text=False, **parameters)["text"]
    found = [score.token for event in desk.events[joins] for score in event.scores]
    assert found[: len(joins.prompt)] == joins.prompt
    assert len(found) == len(joins.prompt) + joins.tokens
    assert len([score for event in desk.events[scored] for score in event.scores]) == len(scored.prompt)
    assert not desk.engine.running


class Layers:
    """Hooks on a decoder's layers: what is submitted in the midst of a step, and what has been told when it ends."""

    def __init__(self, decoder: Decoder) -> None:
        self.submit: list[Any] = []
        """To be called, one in each layer of a step (one token a row), from the second step on."""
        self.steps = 0
        self.tokens: list[int] = []
        """Those of each pass, when its last layer was computed."""
        self.inside = 0
        self.hooks = [
            decoder.register_forward_pre_hook(self.begins),
            decoder.transformer.final_layernorm.register_forward_hook(self.ends),
            *(layer.register_forward_pre_hook(self.layer) for layer in decoder.transformer.layers),
        ]

    def begins(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.steps += inputs[0].shape[1] == 1

    def layer(self, module: Any, inputs: tuple[Any, ...]) -> None:
        if self.steps > 1 and self.submit:
            self.submit.pop(0)()

    def ends(self, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self.tokens.append(len(output))

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def test_a_prompt_that_comes_in_the_midst_of_a_step_is_read_at_once(
    desk: Desk, decoder: Decoder, tokenizer: Tokenizer
) -> None:
    """Its first token is told before the step is over; of further prompts in the same step the running row's next
    token doesn't wait."""
    layers = Layers(decoder)
    runs, comes, waits = (
        desk.job("春", seed=1, max_new_tokens=9),
        desk.job("白日", True, seed=2),
        desk.job("床前明", seed=3),
    )
    desk.pace.rows.clear()
    layers.submit = [lambda: desk.engine.submit([comes]), lambda: desk.engine.submit([waits])]
    told: list[bool] = []
    layers.hooks.append(
        decoder.transformer.final_layernorm.register_forward_hook(
            lambda module, inputs, output: told.append(any(event.tokens for event in desk.events[comes]))
        )
    )
    desk.engine.submit([runs])
    for job in (runs, comes, waits):
        desk.end(job)
    layers.remove()
    generator = TextGenerator(decoder, tokenizer)
    for job, prompt, seed, most in ((runs, "春", 1, 9), (comes, "白日", 2, 128), (waits, "床前明", 3, 128)):
        text = "".join(event.text for event in desk.events[job])
        assert text == generator(prompt, seed=seed, max_new_tokens=most, return_full_text=False)["text"]
    # Read: the row that runs, a step, in the midst of the second one who comes, then who comes after.
    lengths = [len(job.prompt) for job in (runs, comes, waits)]
    assert layers.tokens[:6] == [lengths[0], 1, lengths[1], 1, lengths[2], 3]
    assert told[:4] == [False, False, False, True]


def test_stopping_tells_everybody(desk: Desk) -> None:
    desk.pace.seconds = 0.02
    jobs = [desk.submit("春", seed=1, max_new_tokens=90) for _ in range(6)]
    until(lambda: jobs[0].tokens)
    desk.engine.stop()
    assert not desk.engine.thread.is_alive()
    assert [desk.end(job).finish for job in jobs] == ["stopped"] * 6


def test_pieces_gather_while_the_event_loop_is_behind(decoder: Decoder, tokenizer: Tokenizer) -> None:
    desk = Desk(decoder, tokenizer)
    held: list[list[Event]] = []
    desk.engine.post = held.append
    desk.engine.heard = lambda: not held  # whoever reads is busy for the time being
    desk.engine.start()
    job = desk.submit("春", stream=True, seed=3, max_new_tokens=20)
    until(lambda: job.tokens == 20 and not desk.engine.running)
    desk.engine.stop()
    for events in held:
        desk.take(events)
    assert [bool(event.text) for event in desk.events[job]] == [False, True]  # that it has begun, and all its text
    text = TextGenerator(decoder, tokenizer)("春", seed=3, max_new_tokens=20, return_full_text=False)["text"]
    assert "".join(event.text for event in desk.events[job]) == text
    desk.hook.remove()


def test_running_rows_wait_for_few_prompt_tokens_at_a_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PREFILL_TOKENS", 100)
    desk.pace.seconds = 0.01
    jobs = [desk.submit(prompt, seed=1, max_new_tokens=5) for prompt in ("春", "春" * 80, "山" * 80, "水" * 10)]
    for job in jobs:
        desk.end(job)
    prompts = [rows for rows in desk.pace.rows if rows > 4]
    assert prompts in ([83, 92], [81, 92])  # the first may have been read by itself


def test_rows_that_join_find_the_cache_that_they_had() -> None:
    decoder = make_decoder(make_config(50))
    texts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11, 12], [13]]
    config = GenerationConfig(temperature=0.0, max_new_tokens=20)
    with torch.no_grad():
        rows = start(decoder, texts[:1], [config])
        cache = KVCache(1, 4, torch.device("cpu"))
        prefill(decoder, texts[:1], cache)
        for group in (texts[1:2], texts[2:]):  # one more place is made by doubling, then room for longer rows
            joining = KVCache(len(group), max(map(len, group)), torch.device("cpu"))
            prefill(decoder, group, joining)
            rows.extend(start(decoder, group, [config] * len(group)))
            cache.merge(joining, 25)
        for ids, token in zip(rows.ids, (20, 21, 22, 23), strict=True):
            ids.append(token)
        found = decode_step(decoder, cache, rows, [0, 1, 2, 3])
        expected = [decoder(torch.tensor([ids]))[0, -1] for ids in rows.ids]
        torch.testing.assert_close(found, torch.stack(expected))
        # Of two places that came free one is filled from behind; then another text joins in the old one's place.
        rows = rows.select([0, 3])
        for ids in rows.ids:
            ids.append(30)
        found = decode_step(decoder, cache, rows, [0, 3])
        torch.testing.assert_close(found, torch.stack([decoder(torch.tensor([ids]))[0, -1] for ids in rows.ids]))
        joining = KVCache(1, 2, torch.device("cpu"))
        prefill(decoder, [[40, 41]], joining)
        rows.extend(start(decoder, [[40, 41]], [config]))
        room = cache.storage[0].data_ptr()
        cache.merge(joining, 25)
        assert cache.storage[0].data_ptr() == room  # nothing was laid out anew
        for ids in rows.ids:
            ids.append(42)
        found = decode_step(decoder, cache, rows, [0, 1, 2])
        torch.testing.assert_close(found, torch.stack([decoder(torch.tensor([ids]))[0, -1] for ids in rows.ids]))


def test_the_last_rows_take_the_places_that_come_free() -> None:
    assert moved_up(6, set()) == [0, 1, 2, 3, 4, 5]
    assert moved_up(6, {1, 4}) == [0, 5, 2, 3]
    assert moved_up(6, {5}) == [0, 1, 2, 3, 4]
    assert moved_up(3, {0, 1, 2}) == []
