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
CLICK = "[...document.querySelectorAll('*')].filter(e => e.innerText === '{}').pop().click()"
UNTIL_SEEN = """(async () => {{ const table = document.querySelector('.ag-body-horizontal-scroll-viewport');
  const seen = () => [...document.querySelectorAll('.ag-header-cell')].some(e => e.innerText.trim() === '{}');
  for (let n = 0; n < 99 && !seen(); n++) await new Promise(go => setTimeout(go, 300, table.scrollLeft += 200));
  table.scrollLeft += 200; }})()"""


def take(tab: Page, picture: Path, address: str, words: str, *steps: str) -> None:
    """words: what stands on the page when it is ready. steps: JavaScript, or #LIST=what is chosen in it."""
    tab.open("about:blank")  # or a change behind the # opens nothing anew
    tab.open(address)
    tab.until(f"document.body.innerText.includes({json.dumps(words)})")
    for step in ("", *steps, ""):
        time.sleep(4)  # for what the page fetches meanwhile
        if not step.startswith("#"):
            tab.value(step)
            continue
        tab.click(step.partition("=")[0])
        tab.send("Input.insertText", text=step.partition("=")[2])
        tab.press("Enter", 13)
        tab.press("Escape", 27)
    tab.picture(picture, whole=False)


def main(store: str, experiment: str, metric: str, target: str = "docs/pictures") -> None:
    client, file = MlflowClient(store), f"{target}/tracking-{{}}.png".format
    (number,) = [each.experiment_id for each in client.search_experiments() if each.name == experiment]
    sweep = client.search_runs([number], "tags.stage = 'sweep'", max_results=1)[0]
    keys = [name.replace("best.", "cfg.", 1) for name in sweep.data.tags if name.startswith("best.")]
    nested = f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'"
    trials = [run.info.run_id for run in client.search_runs([number], nested, order_by=[f"metrics.`{metric}` DESC"])]
    columns = [f"metrics.`{metric}`", *(f"params.`{key}`" for key in keys)]
    state = json.dumps({"selectedColumns": columns, "runsExpanded": {sweep.info.run_id: True}})
    settings = SETTINGS | {f'MLflowLocalStorage-1.1-ExperimentPage-["{number}"]-ReactComponentState': state}
    with tempfile.TemporaryDirectory() as place, tracking_server(store, Path(place)) as server, page() as tab:
        base = f"{server.url}/#/experiments/{number}"
        tab.look(1280, 760)
        take(tab, Path(place, "nothing.png"), f"{server.url}/version", "3.")
        for name, value in settings.items():
            tab.value(f"localStorage.setItem({json.dumps(name)}, {json.dumps(value)})")
        take(tab, Path(file("runs")), f"{base}/runs", "matching runs")
        take(tab, Path(file("models")), f"{base}/models", "Source run", UNTIL_SEEN.format(metric))
        tab.look(1280, 600)
        chosen = [CLICK.format("Clear All"), f"#dubois-select-2={metric}", *(f"#dubois-select-1={key}" for key in keys)]
        both = f"{server.url}/#/compare-runs?runs={quote(json.dumps(trials))}&experiments=[%22{number}%22]"
        take(tab, Path(file("compare")), both, "Run details", *chosen)
        tab.look(1280, 1000)
        take(tab, Path(file("run")), f"{base}/runs/{trials[0]}", "About this run", CLICK.format("Show more"))


if __name__ == "__main__":
    main(*sys.argv[1:])
