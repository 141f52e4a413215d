"""Energy that GPUs and the machine's processors have taken, where their counters can be read; nothing is estimated."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
"""Linux's RAPL counters; on many systems root alone may read them, as their fine steps would give secrets away."""

SECONDS = 30.0
"""Between readings: a processor's counter begins anew after some minutes under load."""

JOULES_A_WATT_HOUR = 3600.0


class EnergyMeter:
    """A thread that adds up what the counters say, until `stop`."""

    def __init__(self, gpus: int) -> None:
        """gpus: how many of the visible GPUs are used here, from the first on."""
        self.processors = [place for place in sorted(POWERCAP.glob("intel-rapl:*")) if is_package(place)]
        self.before = [processor_energy(place) for place in self.processors]
        self.joules = 0.0
        self.gpus = gpus
        self.gpus_before = gpu_energy(gpus)
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.work, name="energy", daemon=True)
        self.thread.start()

    def work(self) -> None:
        while not self.ending.wait(SECONDS):
            self.read()

    def read(self) -> None:
        for number, place in enumerate(self.processors):
            before, now = self.before[number], processor_energy(place)
            if before is not None and now is not None:
                self.joules += ((now - before) % counter_range(place)) / 1e6
            self.before[number] = now

    def stop(self) -> dict[str, float]:
        """Metric → watt-hours since the beginning; without what couldn't be read."""
        self.ending.set()
        self.thread.join()
        self.read()
        found, gpus = {}, gpu_energy(self.gpus)
        if self.processors and None not in self.before:
            found["cost/cpu_energy_wh"] = self.joules / JOULES_A_WATT_HOUR
        if gpus is not None and self.gpus_before is not None:
            found["cost/gpu_energy_wh"] = (gpus - self.gpus_before) / 1e3 / JOULES_A_WATT_HOUR
        return found


def is_package(place: Path) -> bool:
    """A whole processor, and no part of one that would count twice."""
    with suppress(OSError):
        return (place / "name").read_text().startswith("package")
    return False


def processor_energy(place: Path) -> int | None:
    """Microjoules; None where they can't be read."""
    with suppress(OSError, ValueError):
        return int((place / "energy_uj").read_text())
    return None


def counter_range(place: Path) -> int:
    """What a processor's counter goes up to before it begins anew."""
    return int((place / "max_energy_range_uj").read_text()) + 1


def gpu_energy(count: int) -> int | None:
    """Millijoules of the first `count` visible GPUs since their driver was loaded; None where one doesn't tell."""
    if not count:
        return None
    import pynvml

    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        names = [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in range(count)]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(n)) for n in names)
    return None
