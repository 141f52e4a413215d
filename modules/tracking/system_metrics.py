"""CPU, memory, disk, network and GPUs every few seconds, under MLflow's names, into the run's local log.

MLflow's own monitor asks the server before each sample, ends for good when it doesn't answer, and is waited for at the
end of the run.
"""

from __future__ import annotations

import threading

from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from .tracked_run import TrackedRun

PREFIX = "system/"

SECONDS = 2.0
"""Between samples; MLflow's 10 miss short stages."""


class SystemMetrics:
    """A thread that samples and logs them until `stop`."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run
        self.monitor = SystemMetricsMonitor(run.info.run_id)  # never started: it only reads the counters
        self.interval = float(MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or SECONDS)
        earlier = [step for name in run.earlier if name.startswith(PREFIX) for step, _ in run.earlier[name]]
        self.step = max(earlier, default=-1) + 1
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.work, name="system metrics", daemon=True)
        self.sample()  # CPU use is measured from here on
        self.thread.start()

    def work(self) -> None:
        while not self.ending.wait(self.interval):
            self.run.write_metrics({PREFIX + name: value for name, value in self.sample().items()}, self.step)
            self.step += 1

    def sample(self) -> dict[str, float]:
        self.monitor.collect_metrics()
        values = self.monitor.aggregate_metrics()
        for part in self.monitor.monitors:
            part.clear_metrics()
        return dict(values)

    def stop(self) -> None:
        self.ending.set()
        self.thread.join()
