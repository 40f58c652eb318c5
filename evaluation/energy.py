"""Energy, read from the meters that the machine has: RAPL for the processor and NVML for NVIDIA GPUs.

A meter counts the whole processor and every GPU that NVML shows, whoever used them. Where there is none, energy can be
estimated from the time that cores were busy; an estimate says that it is one, and what it assumes.
"""

import contextlib
import importlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax

from limbeck.evaluation.quantities import quantity
from limbeck.model.errors import UserError

POWERCAP = Path("/sys/class/powercap")

# Grams of CO2 equivalent for a kWh, world average of 2024: Ember, Global Electricity Review 2025.
WORLD = 473.0

# The power of a busy core where the processor is unknown: Green Algorithms (Lannelongue, Grealey and Inouye 2021,
# doi 10.1002/advs.202100707), whose figure is the thermal design power of a core, averaged over processors.
CORE_WATTS = 12.0

# Board power in watts by the beginning of the device's name, as JAX and NVML tell it: NVIDIA's data sheets.
BOARD_WATTS: Mapping[str, float] = {
    "NVIDIA H200": 700.0,
    "NVIDIA H200 NVL": 600.0,
    "NVIDIA H100 80GB HBM3": 700.0,
    "NVIDIA H100 PCIe": 350.0,
    "NVIDIA A100-SXM4": 400.0,
    "NVIDIA A100-PCIE-40GB": 250.0,
    "NVIDIA A100 80GB PCIe": 300.0,
    "NVIDIA L40S": 350.0,
    "NVIDIA L4": 72.0,
    "NVIDIA A10": 150.0,
    "Tesla V100-SXM2": 300.0,
    "Tesla T4": 70.0,
}

_JOULES_PER_KWH = 3.6e6


class Energy(NamedTuple):
    """Joules, None where they are unknown; how they are known begins "measured: ", "estimate: " or "unknown: "."""

    joules: float | None
    source: str


class Meter:
    """Joules spent inside a `with` block.

    After it, `.seconds` is the time it took, `.cpu_seconds` that of all cores which this process kept busy (a process
    that it started is not counted), and `.joules` the energy, or None where the machine has no meter that may be read:
    never an estimate. `.source` says what was read: "rapl", "nvml", "rapl+nvml" or None.
    """

    def __init__(self, powercap: Path = POWERCAP, period_s: float = 30.0) -> None:
        """`period_s`: RAPL's counters wrap around after minutes of full load, so they are read this often."""
        self.joules: float | None = None
        self.seconds = 0.0
        self.cpu_seconds = 0.0
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
        self._start, self._start_cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._start_cpu
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


def estimated(seconds: float, *, cores: float, accelerators: Sequence[str] = ()) -> Energy:
    """What a while of work takes by rule of thumb: so many busy cores, and accelerators at full load, by their names.

    `cores` is a mean and may be a fraction: CPU-seconds over seconds. Memory, disks and cooling are left out. A core
    has `CORE_WATTS`, which may be off by a factor of three: CodeCarbon falls back on 4 W a hardware thread, Cloud
    Carbon Footprint's cloud servers take up to 3.5. An accelerator that is not in `BOARD_WATTS` makes the energy
    unknown. Raises UserError for a time or a number of cores below 0.
    """
    for name, value in (("seconds", seconds), ("cores", cores)):
        if not value >= 0:
            raise UserError(f"{name}={value}: must be 0 or more")
    told = [_busy(cores)]
    watts = cores * CORE_WATTS
    for kind in accelerators:
        if (board := _board_watts(kind)) is None:
            return Energy(None, f"unknown: no meter, and no power is known for {kind!r}")
        told.append(f"{kind} at {board:g} W")
        watts += board
    return Energy(seconds * watts, f"estimate: {', '.join(told)}")


def spent(meter: Meter, *, accelerators: Sequence[str] = ()) -> Energy:
    """What a meter measured, or else an estimate by the CPU-seconds that the process used.

    `accelerators` are the names of the devices that it used besides (`device_kind` of JAX, without CPUs). Where only
    the processor could be measured, the source names those that are missing. Where only GPUs could, the processor is
    estimated and the whole is an estimate; GPUs that were not used are left out, for theirs is what an idle one takes.
    """
    cores = meter.cpu_seconds / meter.seconds if meter.seconds else 0.0
    if meter.joules is None:
        return estimated(meter.seconds, cores=cores, accelerators=accelerators)
    if meter.source == "nvml" and not accelerators:
        return estimated(meter.seconds, cores=cores)
    if meter.source == "nvml":
        return Energy(meter.joules + meter.cpu_seconds * CORE_WATTS, f"estimate: nvml, and {_busy(cores)}")
    missing = f", without {', '.join(accelerators)}" if accelerators and meter.source == "rapl" else ""
    return Energy(meter.joules, f"measured: {meter.source}{missing}")


def accelerators() -> list[str]:
    """The names of the devices that compute here besides the processor."""
    return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]


def of_requests(meter: Meter, requests: int) -> dict[str, Any]:
    """{"joules_per_prediction", "joules_source"} of so many requests inside a meter, as a row of a report has them."""
    energy = spent(meter, accelerators=accelerators())
    each = None if energy.joules is None else energy.joules / requests
    return {"joules_per_prediction": each, "joules_source": energy.source}


def emissions(joules: float, grams_per_kwh: float = WORLD) -> float:
    """Grams of CO2 equivalent that a grid of this intensity gives off for so much energy."""
    return joules / _JOULES_PER_KWH * grams_per_kwh


def told(energy: Energy, grams_per_kwh: float = WORLD) -> str:
    """`800 J (estimate: 2 cores at 12 W (Green Algorithms)), 105 mg CO2e at 473 g/kWh`, or why it is not known."""
    if energy.joules is None:
        return f"energy {energy.source}"
    grams = quantity(emissions(energy.joules, grams_per_kwh), "g")
    return f"{quantity(energy.joules, 'J')} ({energy.source}), {grams} CO2e at {grams_per_kwh:g} g/kWh"


def footprint(
    meter: Meter, flops: float | None = None, *, accelerators: Sequence[str] = (), grams_per_kwh: float = WORLD
) -> dict[str, Any]:
    """What the block inside a meter cost, as a run or a report stores it; None for what is not known.

    {"seconds", "cpu_seconds", "flops", "joules", "joules_source", "grams_co2e", "grams_per_kwh"}
    """
    energy = spent(meter, accelerators=accelerators)
    return {
        "seconds": meter.seconds,
        "cpu_seconds": meter.cpu_seconds,
        "flops": flops,
        "joules": energy.joules,
        "joules_source": energy.source,
        "grams_co2e": None if energy.joules is None else emissions(energy.joules, grams_per_kwh),
        "grams_per_kwh": grams_per_kwh,
    }


def _busy(cores: float) -> str:
    return f"{quantity(cores)} core{'s' * (cores != 1)} at {CORE_WATTS:g} W (Green Algorithms)"


def _board_watts(kind: str) -> float | None:
    """By the longest name that `kind` begins with, in whole words: an "NVIDIA L40" is no "NVIDIA L4"."""
    fitting = [name for name in BOARD_WATTS if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
    return BOARD_WATTS[max(fitting, key=len)] if fitting else None


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
