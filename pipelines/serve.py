"""A model behind HTTP: OpenAI's completions, MLflow's invocations, one running batch for all (docs/serving.md)."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from modules.checkpoint.loading import check_folder, is_registered, model_folder
from modules.config.generation import ServeConfig
from modules.inference.server.lifecycle import Lifecycle, is_loading

from .cli.command_line import run_stage


def serve(config: ServeConfig) -> None:
    """Until SIGTERM or Ctrl-C. Raises ValueError for a model that can't be found, verified or listened for."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it has a line for each client that hangs up
    if is_registered(config.model):
        from modules.tracking.registry import resolve_model
        from modules.tracking.stage_run import connect  # MLflow takes seconds to import, a folder needs none of it

        connect(config.tracking)
        folder = resolve_model(config.model)
    else:
        folder = model_folder(config.model)
    check_folder(folder)
    name = config.name or name_of(config.model, folder)
    server = Lifecycle(config, folder, name)
    if not server.this_machine_only:
        print(f"serve: others can reach {server.address}, and nothing asks who they are (docs/serving.md)", flush=True)
    print(f"serve: verifying and loading {folder}", flush=True)
    server.run(lambda address: print(ready_line(name, address), flush=True))


def ready_line(name: str, address: str) -> str:
    return f"serve: {name} is ready: {address}/ in a browser, {address}/v1/completions for programs; Ctrl-C stops"


def name_of(model: str, folder: Path) -> str:
    """The name in the registry; of a folder its own, or that of the training's output that it lies in."""
    if model.startswith("models:/"):
        return model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    place = folder.resolve()
    return place.parent.name if place.name == "model" else place.name


if __name__ == "__main__":
    run_stage("serve", serve)
    if is_loading():  # stopped before it served: torch aborts when Python ends around a thread that computes
        os._exit(0)
