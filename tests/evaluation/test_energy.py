"""The meter on a made-up powercap folder and a made-up NVML: no machine's own counters are needed."""

import json
import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from limbeck.evaluation.energy import (
    CORE_WATTS,
    WORLD,
    Energy,
    Meter,
    estimated,
    footprint,
    spent,
    told,
)


class FakeNvmlError(Exception):
    pass


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it fails


def nvml(energies_mj):
    """A pynvml whose GPUs answer these energies, one list a reading."""
    readings = iter(energies_mj)
    now = []

    def init():
        now[:] = next(readings)

    def energy(index):
        if now[index] is None:
            raise FakeNvmlError("not supported")
        return now[index]

    return SimpleNamespace(
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: len(now),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=energy,
        NVMLError=FakeNvmlError,
    )


@pytest.fixture
def powercap(tmp_path):
    """Two packages, one with memory; cores and psys would count the same energy twice."""
    domains = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for folder, name in domains.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "max_energy_range_uj").write_text("1000000000\n")
        set_uj(tmp_path, folder, 500_000_000)
    return tmp_path


def set_uj(powercap, folder, energy_uj):
    # Renamed into place, as the meter's own thread must never see half a number.
    (powercap / "new").write_text(f"{energy_uj}\n")
    os.replace(powercap / "new", powercap / folder / "energy_uj")


def test_packages_and_their_memory_are_added_up(powercap):
    with Meter(powercap) as meter:
        for folder, used_uj in [
            ("intel-rapl:0", 7_000_000),
            ("intel-rapl:0:0", 5_000_000),
            ("intel-rapl:0:1", 200_000),
            ("intel-rapl:1", 3_000_000),
            ("intel-rapl:2", 11_000_000),
        ]:
            set_uj(powercap, folder, 500_000_000 + used_uj)
        time.sleep(0.01)
    assert meter.joules == pytest.approx(10.2)
    assert meter.source == "rapl"
    assert 0.01 <= meter.seconds < 5


def test_a_counter_that_wraps_around(powercap):
    with Meter(powercap) as meter:
        set_uj(powercap, "intel-rapl:0", 20_000_000)
    assert meter.joules == pytest.approx(500 + 20)


def test_a_long_run_outlives_several_wraps(powercap):
    with Meter(powercap, period_s=0.005) as meter:
        for energy_uj in (900_000_000, 300_000_000) * 3:
            set_uj(powercap, "intel-rapl:0", energy_uj)
            time.sleep(0.1)
    assert meter.joules == pytest.approx(400 + 3 * 400 + 2 * 600)


@pytest.mark.parametrize("spoil", ["no folder", "empty folder", "no counter", "no number", "a directory", "no range"])
def test_no_meter_no_number(powercap, tmp_path, spoil):
    counter = powercap / "intel-rapl:1" / "energy_uj"
    if spoil == "no folder":
        powercap = tmp_path / "nowhere"
    elif spoil == "empty folder":
        powercap = tmp_path / "empty"
        powercap.mkdir()
    elif spoil == "no range":
        (powercap / "intel-rapl:1" / "max_energy_range_uj").unlink()
    else:
        counter.unlink()
        if spoil == "no number":
            counter.write_text("")
        elif spoil == "a directory":
            counter.mkdir()
    with Meter(powercap) as meter:
        pass
    assert meter.joules is None
    assert meter.source is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_counter_for_root_alone(powercap):
    (powercap / "intel-rapl:0" / "energy_uj").chmod(0)
    with Meter(powercap) as meter:
        pass
    assert meter.joules is None


def test_a_counter_that_is_lost_on_the_way(powercap):
    with Meter(powercap) as meter:
        (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules is None


def test_gpus_are_added_to_the_processor(powercap, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml([[1000, 5000], [3500, 5500]]))
    with Meter(powercap) as meter:
        set_uj(powercap, "intel-rapl:0", 501_000_000)
    assert meter.joules == pytest.approx(1 + 3)
    assert meter.source == "rapl+nvml"


@pytest.mark.parametrize("readings", [[[], []], [[1000, None], [2000, None]]])
def test_a_gpu_that_does_not_say(tmp_path, monkeypatch, readings):
    monkeypatch.setitem(sys.modules, "pynvml", nvml(readings))
    with Meter(tmp_path) as meter:
        pass
    assert meter.joules is None


def test_an_error_inside_passes_through(powercap):
    with pytest.raises(KeyError), Meter(powercap) as meter:
        raise KeyError
    assert meter.joules == 0


# What cores were busy


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_cpu_seconds_are_those_of_all_threads_and_not_those_of_waiting(powercap):
    with Meter(powercap) as waiting:
        time.sleep(0.1)
    with Meter(powercap) as busy:
        threads = [threading.Thread(target=spin, args=(0.1,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert waiting.seconds >= 0.1 and waiting.cpu_seconds < 0.05
    assert 0.1 <= busy.cpu_seconds < 0.5


# What a meter comes to


def test_the_meter_wins_over_the_estimate(powercap):
    with Meter(powercap) as meter:
        set_uj(powercap, "intel-rapl:0", 507_000_000)
        spin(0.02)
    energy = spent(meter)
    assert (energy.joules, energy.source) == (pytest.approx(7.0), "measured: rapl")
    assert spent(meter, accelerators=["Tesla T4"]).source == "measured: rapl, without Tesla T4"
    assert footprint(meter)["joules_source"] == "measured: rapl"


def test_gpus_that_were_measured_are_not_missing(powercap, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml([[1000], [3500]]))
    with Meter(powercap) as meter:
        pass
    energy = spent(meter, accelerators=["Tesla T4"])
    assert (energy.joules, energy.source) == (pytest.approx(2.5), "measured: rapl+nvml")


def test_an_idle_gpu_is_not_what_the_processor_took(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml([[1000], [900_000]]))
    with Meter(tmp_path) as meter:
        spin(0.05)
    assert meter.source == "nvml"
    energy = spent(meter)
    assert energy.joules == pytest.approx(meter.cpu_seconds * CORE_WATTS)
    assert energy == estimated(meter.seconds, cores=meter.cpu_seconds / meter.seconds)
    assert energy.source.startswith("estimate: ") and "nvml" not in energy.source
    assert footprint(meter)["joules"] == energy.joules


def test_gpus_that_were_measured_alone_get_the_estimate_of_the_processor(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml([[1000], [3500]]))
    with Meter(tmp_path) as meter:
        pass
    meter.seconds, meter.cpu_seconds = 10.0, 12.0
    energy = spent(meter, accelerators=["a stranger"])  # which was measured, so that nobody need know its power
    assert energy == Energy(2.5 + 12 * 12, "estimate: nvml, and 1.2 cores at 12 W (Green Algorithms)")


def test_without_a_meter_the_cpu_seconds_count_and_nothing_is_called_measured(tmp_path):
    with Meter(tmp_path) as meter:
        spin(0.1)
        time.sleep(0.1)
    energy = spent(meter)
    assert meter.joules is None and meter.source is None
    assert energy.joules == pytest.approx(meter.cpu_seconds * CORE_WATTS)
    assert energy.source.startswith("estimate: ") and "cores at 12 W" in energy.source
    assert "measured" not in told(energy)
    with_gpu = spent(meter, accelerators=["Tesla T4"]).joules
    assert with_gpu == pytest.approx(meter.cpu_seconds * CORE_WATTS + 70 * meter.seconds)
    assert spent(Meter(tmp_path)) == Energy(0.0, "estimate: 0 cores at 12 W (Green Algorithms)")  # that never ran


def test_the_record_that_is_stored(tmp_path, powercap):
    with Meter(powercap) as meter:
        set_uj(powercap, "intel-rapl:0", 572_000_000)
    record = footprint(meter, 2e12, grams_per_kwh=50)
    assert record == {
        "seconds": meter.seconds,
        "cpu_seconds": meter.cpu_seconds,
        "flops": 2e12,
        "joules": pytest.approx(72),
        "joules_source": "measured: rapl",
        "grams_co2e": pytest.approx(0.001),
        "grams_per_kwh": 50,
    }
    with Meter(tmp_path / "none") as meter:
        pass
    unknown = footprint(meter, accelerators=["a stranger"])
    assert unknown["joules"] is unknown["grams_co2e"] is unknown["flops"] is None
    assert unknown["joules_source"].startswith("unknown: ") and unknown["grams_per_kwh"] == WORLD
    assert json.loads(json.dumps(record)) and json.loads(json.dumps(unknown))
