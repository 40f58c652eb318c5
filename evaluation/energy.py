"""Energy, read from the meters that the machine has: RAPL for the processor and NVML for NVIDIA GPUs.

A meter counts the whole processor and every GPU that NVML shows, whoever used them.
"""

import contextlib
import importlib
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Joules spent inside a `with` block.

    After it, `.seconds` is the time it took, and `.joules` the energy, or None where the machine has no meter
    that may be read: never an estimate. `.source` says what was read: "rapl", "nvml", "rapl+nvml" or None.
    """

    def __init__(self, powercap: Path = POWERCAP, period_s: float = 30.0) -> None:
        """`period_s`: RAPL's counters wrap around after minutes of full load, so they are read this often."""
        self.joules: float | None = None
        self.seconds = 0.0
        self.source: str | None = None
        self._powercap = powercap
        self._period_s = period_s

    def __enter__(self) -> Self:
        self._ranges_uj = _rapl_ranges(self._powercap)
        self._rapl_uj = 0
        self._last_uj = _read_all(self._ranges_uj)
        self._start_mj = _nvml_mj()
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._keep_reading, daemon=True)
        self._reader.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._reader.join()
        self._count_rapl()
        end_mj = _nvml_mj()
        joules = {}
        if self._last_uj is not None:
            joules["rapl"] = self._rapl_uj / 1e6
        if self._start_mj is not None and end_mj is not None:
            joules["nvml"] = (end_mj - self._start_mj) / 1e3
        if joules:
            self.joules, self.source = sum(joules.values()), "+".join(joules)

    def _keep_reading(self) -> None:
        while not self._stop.wait(self._period_s):
            self._count_rapl()

    def _count_rapl(self) -> None:
        """Adds what was used since the last reading; a reading that fails makes the count unknown."""
        if self._last_uj is None:
            return
        now_uj = _read_all(self._ranges_uj)
        if now_uj is not None:
            for now, last, range_uj in zip(now_uj, self._last_uj, self._ranges_uj.values(), strict=True):
                self._rapl_uj += now - last if now >= last else now - last + range_uj
        self._last_uj = now_uj


def _rapl_ranges(powercap: Path) -> dict[Path, int]:
    """The counters to add up and where each wraps around, in microjoules.

    Processor packages and their memory: cores lie inside a package, and "psys" holds everything again.
    """
    ranges_uj = {}
    with contextlib.suppress(OSError, ValueError):
        for domain in sorted(powercap.glob("intel-rapl:*")):
            name = (domain / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                ranges_uj[domain / "energy_uj"] = int((domain / "max_energy_range_uj").read_text())
        return ranges_uj
    return {}


def _read_all(counters: Iterable[Path]) -> list[int] | None:
    """All counters, or None if there are none or any of them cannot be read: a part is not the whole."""
    with contextlib.suppress(OSError, ValueError):
        return [int(counter.read_text()) for counter in counters] or None
    return None


def _nvml_mj() -> int | None:
    """What all GPUs used since the driver was loaded; None without NVML or if a GPU does not say."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) if handles else None
    except pynvml.NVMLError:
        return None
