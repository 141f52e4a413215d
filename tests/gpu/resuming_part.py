"""The part of the check that breaks a whole command off and starts it again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing.context import ForkProcess

import mlflow

from modules.data.corpora.folders import SAMPLE
from pipelines.cli.command_line import run_stage
from pipelines.finetune import finetune

from .results import ON_GPU, OUT, POEMS, WORK, record


def pipeline() -> None:
    """The whole command; broken off in the middle and gone on with, it must come to the same, bit for bit."""
    steps, every = (120, 20) if ON_GPU else (6, 2)
    arguments = [
        f"train.init_from={POEMS}", "train.max_epochs=null", f"train.max_steps={steps}", "train.sample_prompts=[]",
        f"train.validate_every_n_steps={2 * every}", f"train.save_every_n_steps={every}", "trainer.progress_bar=false",
        f"trainer.accelerator={'gpu' if ON_GPU else 'cpu'}", f"data.path={SAMPLE}",
        f"data.max_rows={3000 if ON_GPU else 60}", f"data.cache_dir={WORK / 'cache'}",
        "tracking.log_system_metrics=false",
    ]  # fmt: skip
    if not ON_GPU:
        arguments += ["data.sequence_length=32", "train.batch_size=2"]
    begun = time.monotonic()
    store = WORK / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{store}").search_experiments()  # laying out the tables takes seconds
    for name in ("straight", "broken"):
        shutil.copy(store, WORK / f"{name}.db")
    straight, broken = command("straight", *arguments), command("broken", *arguments)
    checkpoint = WORK / "broken" / "checkpoints" / f"step={every}.ckpt"
    while broken.is_alive() and not checkpoint.exists():
        time.sleep(0.05)
    broken.terminate()
    codes = [exit_code(broken), exit_code(command("broken", *arguments)), exit_code(straight)]
    losses = {name: logged_losses(name) for name in ("straight", "broken")}
    files = [WORK / name / "model" / "model.safetensors" for name in losses]
    values = {
        "losses equal": losses["straight"] == losses["broken"] and len(losses["broken"]) == steps,
        "weights equal": all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes(),
        "stopped by the signal": codes[0] == 128 + signal.SIGTERM,
        "gone on, and without a break": codes[1:] == [0, 0],
    }
    record("pipeline", "SIGTERM, the same command again", all(values.values()), **values, codes=codes,
           seconds=time.monotonic() - begun)  # fmt: skip


def command(name: str, *arguments: str) -> ForkProcess:
    """`python -m pipelines.finetune`, but for the imports."""
    own = [f"output_dir={WORK / name}", f"tracking.tracking_uri=sqlite:///{WORK / name}.db"]
    own.append(f"tracking.spool_dir={WORK / name}-spool")
    process = multiprocessing.get_context("fork").Process(target=run_finetune, args=([*arguments, *own],))
    process.start()
    return process


def run_finetune(arguments: list[str]) -> None:
    with (OUT / "pipeline.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    run_stage("finetune", finetune, arguments)


def exit_code(process: ForkProcess) -> int | None:
    process.join()
    return process.exitcode


def logged_losses(name: str) -> list[tuple[int, float]]:
    """(step, loss) of the run that the command has logged."""
    client = mlflow.MlflowClient(f"sqlite:///{WORK / name}.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return [(m.step, m.value) for run in runs for m in client.get_metric_history(run.info.run_id, "train/loss")]
