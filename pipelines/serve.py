"""A model behind HTTP: OpenAI's completions, MLflow's invocations, one running batch for all (docs/serving.md)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from modules.config.base import is_registered, model_folder
from modules.config.generation import ServeConfig
from modules.inference.server.access import API_KEY, ApiKeys, read_key
from modules.inference.server.lifecycle import Lifecycle
from modules.inference.server.model_process.messages import Found
from modules.inference.server.model_process.served_model import ServedModel
from modules.system.redaction import FROM_ENVIRONMENT
from modules.tracking.traces.trace_sender import sending_traces

from .cli.command_line import run_stage
from .cli.printing import say
from .cli.serving import GivenModel


def serve(config: ServeConfig) -> None:
    """Until SIGTERM or Ctrl-C. Raises ValueError for a model that can't be found, verified or listened for.

    With `traces` what is asked and answered is sent to MLflow.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it has a line for each client that hangs up
    key = read_key(os.environ)
    place = Path(config.model) if is_registered(config.model) else model_folder(config.model)
    model = config.model if is_registered(config.model) else str(place)
    source = GivenModel(model, config.tracking, dict(FROM_ENVIRONMENT))
    name = config.name or name_of(config.model, place)
    server = Lifecycle(config, source, name, key)
    told: list[str] = []  # once, not whenever an alias moves

    def found(model: Found) -> None:
        if not server.this_machine_only and not told:
            told.append(server.address)
            asked = (
                f"nobody is asked for a key ({API_KEY})" if key is None else "the API key isn't encrypted on its way"
            )
            names = "" if config.allowed_hosts else ", by its IP address (by a name, if allowed_hosts has it)"
            say(f"serve: others can reach {server.address}{names}, and {asked}: docs/serving.md")
        say(f"serve: verifying and loading {model.folder}")

    def ready(model: ServedModel) -> None:
        origin = ", ".join(f"{what.partition('_')[0]} {which}" for what, which in model.origin.items())
        say(ready_line(f"{name} ({origin})" if origin else name, server.address, key))

    if not config.traces:
        server.run(ready, found)
        return
    with sending_traces(config, source) as (server.service.recorder, where):
        say(f"serve: prompts and texts of {100 * config.traces:.4g}% of the requests are kept as traces in {where}")
        server.run(ready, found)


def ready_line(name: str, address: str, keys: ApiKeys | None) -> str:
    known = f"the {len(keys)} named API keys" if isinstance(keys, Mapping) else "the API key"
    key = f"with {known} of {API_KEY}" if keys else "without an API key"
    places = f"{address}/ in a browser, {address}/v1 for OpenAI's clients"
    return f"serve: {name} is ready {key}: {places}; Ctrl-C stops"


def name_of(model: str, folder: Path) -> str:
    """The name in the registry; of a folder its own, or that of the training's output that it lies in."""
    if model.startswith("models:/"):
        return model.removeprefix("models:/").partition("@")[0].partition("/")[0]
    place = folder.resolve()
    return place.parent.name if place.name == "model" else place.name


if __name__ == "__main__":
    run_stage("serve", serve)
