"""Estimated energy by hand, the power of devices by their names, and how energy is told."""

import math

import pytest

from limbeck.evaluation.energy import BOARD_WATTS, WORLD, Energy, emissions, estimated, told
from limbeck.model.errors import UserError


def test_cores_and_accelerators_add_up():
    assert estimated(50.0, cores=2) == Energy(1200.0, "estimate: 2 cores at 12 W (Green Algorithms)")
    assert estimated(10, cores=0.5) == Energy(60, "estimate: 0.5 cores at 12 W (Green Algorithms)")
    assert estimated(1, cores=128).source == "estimate: 128 cores at 12 W (Green Algorithms)"
    energy = estimated(10, cores=1, accelerators=["Tesla T4", "Tesla T4"])
    assert energy.joules == 10 * (12 + 70 + 70)
    assert energy.source == "estimate: 1 core at 12 W (Green Algorithms), Tesla T4 at 70 W, Tesla T4 at 70 W"
    assert estimated(0, cores=3).joules == 0


@pytest.mark.parametrize(
    ("kind", "watts"),
    [
        ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA A100-SXM4-40GB", 400),
        ("NVIDIA A100 80GB PCIe", 300),
        ("NVIDIA H100 80GB HBM3", 700),
        ("NVIDIA H200", 700),
        ("NVIDIA H200 NVL", 600),
        ("NVIDIA L4", 72),
        ("Tesla V100-SXM2-16GB", 300),
    ],
)
def test_a_device_is_known_by_its_name(kind, watts):
    assert estimated(1, cores=0, accelerators=[kind]).joules == watts


@pytest.mark.parametrize("kind", ["NVIDIA L40", "NVIDIA A10G", "NVIDIA A100X", "TPU v9", "NVIDIA H100", "", "T4"])
def test_a_stranger_has_no_invented_power(kind):
    energy = estimated(10, cores=2, accelerators=["Tesla T4", kind])
    assert energy == Energy(None, f"unknown: no meter, and no power is known for {kind!r}")
    assert told(energy) == f"energy {energy.source}"


# What it comes to


def test_emissions_of_a_kilowatt_hour_are_the_intensity():
    assert emissions(3.6e6) == WORLD == 473
    assert emissions(7200, 50) == pytest.approx(0.1)
    assert emissions(0) == 0


def test_told_in_one_line():
    assert told(estimated(33.3, cores=2)) == (
        "799 J (estimate: 2 cores at 12 W (Green Algorithms)), 105 mg CO2e at 473 g/kWh"
    )
    assert told(Energy(7.2e6, "measured: rapl"), 50) == "7.2 MJ (measured: rapl), 100 g CO2e at 50 g/kWh"


@pytest.mark.parametrize(
    ("seconds", "cores", "says"), [(-1, 1, "seconds=-1"), (1, -0.5, "cores=-0.5"), (1, math.nan, "cores=nan")]
)
def test_mistakes_are_one_line(seconds, cores, says):
    with pytest.raises(UserError, match=says):
        estimated(seconds, cores=cores)


def test_powers_are_those_of_boards():
    assert all(50 < watts < 1500 for watts in BOARD_WATTS.values())
