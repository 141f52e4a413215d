"""`python -m tools.picture_of_tracking STORE EXPERIMENT METRIC [folder]`: MLflow's pages, for docs/pictures/.

STORE: sqlite:///… of an experiment that holds a sweep; the pictures are of the newest one. METRIC: what is ranked by,
the higher the better, as val/rougeL. Needs Chromium and a font with Chinese (Debian: chromium, fonts-noto-cjk).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from mlflow import MlflowClient

from tests.helpers.browser import Page, page
from tests.helpers.servers import tracking_server

SETTINGS = {
    "mlflow.workflowType_v1": '"machine_learning"',  # what a click on "Model training" leaves
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}
COLUMNS = ("train.learning_rate", "train.batch_size", "train.weight_decay")
SECONDS = 4.0
"""For what a page fetches after its first words are there."""

UNTIL_SEEN = """(async () => {
  const table = document.querySelector('.ag-body-horizontal-scroll-viewport');
  const seen = () => [...document.querySelectorAll('.ag-header-cell')].some(e => e.innerText.trim() === METRIC);
  for (; !seen() && table.scrollLeft + table.clientWidth < table.scrollWidth; table.scrollLeft += 200)
    await new Promise(done => setTimeout(done, 300));
  table.scrollLeft += 200;
})()"""


def take(tab: Page, address: str, words: str, picture: Path, steps: tuple[str, ...] = ()) -> None:
    """words: what stands on the page when it is ready. steps: JavaScript, one after the other."""
    tab.open("about:blank")  # or a change behind the # opens nothing anew
    tab.open(address)
    tab.until(f"document.body.innerText.includes({json.dumps(words)})")
    for step in ("", *steps):
        tab.value(step)
        time.sleep(SECONDS)
    tab.picture(picture, whole=False)


def click_on(text: str) -> str:
    return f"[...document.querySelectorAll('*')].filter(e => e.innerText === {json.dumps(text)}).pop().click()"


def main(store: str, experiment: str, metric: str, target: str = "docs/pictures") -> None:
    client, folder = MlflowClient(store), Path(target)
    found = client.get_experiment_by_name(experiment)
    assert found, f"{store} has no experiment {experiment}"
    number = found.experiment_id
    sweep = client.search_runs([number], "tags.stage = 'sweep'", max_results=1)[0].info.run_id
    below = client.search_runs(
        [number], f"tags.`mlflow.parentRunId` = '{sweep}'", order_by=[f"metrics.`{metric}` DESC"]
    )
    trials = json.dumps([run.info.run_id for run in below if "seed=" not in run.info.run_name], separators=(",", ":"))
    columns = [f"metrics.`{metric}`", *(f"params.`cfg.{name}`" for name in COLUMNS)]
    state = {"selectedColumns": columns, "runsExpanded": {sweep: True}}
    key = f'MLflowLocalStorage-1.1-ExperimentPage-["{number}"]-ReactComponentState'
    with tempfile.TemporaryDirectory() as place, tracking_server(store, Path(place)) as server, page() as tab:
        tab.look(1280, 760)
        tab.open(f"{server.url}/version")
        tab.until("location.protocol === 'http:' && document.readyState === 'complete'")
        for name, value in {**SETTINGS, key: json.dumps(state)}.items():
            tab.value(f"localStorage.setItem({json.dumps(name)}, {json.dumps(value)})")
        base = f"{server.url}/#/experiments/{number}"
        take(tab, f"{base}/runs", "matching runs", folder / "tracking-runs.png")
        steps = (UNTIL_SEEN.replace("METRIC", json.dumps(metric)), click_on(metric), click_on(metric))
        take(tab, f"{base}/models", "Source run", folder / "tracking-models.png", steps)
        compared = f"{server.url}/#/compare-runs?runs={quote(trials)}&experiments={quote(json.dumps([number]))}"
        take(tab, compared, "Run details", folder / "tracking-compare.png")
        tab.look(1280, 1000)
        take(
            tab,
            f"{base}/runs/{below[0].info.run_id}",
            "About this run",
            folder / "tracking-run.png",
            (click_on("Show more"),),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
