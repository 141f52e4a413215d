"""What the stages in pipelines/ are made of: ten packages, each of which imports only those below it in this list.

evaluation   what a model is worth: tasks, metrics, statistics, baselines, promotion, reports
tracking     MLflow: one run a stage, provenance, the registry, the comparison of runs
training     the LightningModule and all around fit: optimizers, callbacks, strategies, resume, the plan
inference    text from a model: generator, MLflow's pyfunc, the HTTP server
data         rows of text → checked rows → documents of ids → packed steps → DataModule
checkpoint   models at rest: weights, model folders, adapters, training checkpoints, other people's formats
model        the network, torch alone: decoder, KV cache, loss, LoRA, parallel plan, sampling, int8
tokenizer    text ↔ ids, prompts, streaming
config       every key, typed, with its meaning; loading and --help
system       what the machine gives: atomic writes, checksums, cache, bounded reads, hardware, signals

No parsing of arguments and no printing here. `make check` holds the order (import-linter).
"""

import os

if not os.environ.get("MLFLOW_DISABLE_TELEMETRY"):
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # here, as MLflow decides when it is imported, in any process
