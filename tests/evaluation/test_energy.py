"""The meter on a made-up powercap folder and a made-up NVML: no machine's own counters are needed."""

import os
import sys
import time
from types import SimpleNamespace

import pytest

from limbeck.evaluation.energy import Meter


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
