"""Figures of chips hang together, and are found by the names that JAX gives devices."""

from types import SimpleNamespace

import jax
import pytest

from limbeck.model.chips import CHIPS, chip_of
from limbeck.model.errors import UserError
from limbeck.model.peak import peak

# Multipliers a chip: systolic arrays times rows times columns.
_MULTIPLIERS = {"TPU v4": 8 * 128**2, "TPU v5e": 4 * 128**2, "TPU v5p": 8 * 128**2, "TPU v6e": 4 * 256**2}


@pytest.mark.parametrize("kind", _MULTIPLIERS)
def test_the_peak_is_two_operations_of_each_multiplier_a_tick(kind):
    chip = CHIPS[kind]
    assert chip.clock_hz is not None
    assert 2 * _MULTIPLIERS[kind] * chip.clock_hz == pytest.approx(chip.flops_per_second, rel=0.005)


def test_two_names_of_a_chip_have_the_same_figures():
    for name, other in [("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")]:
        assert chip_of(name)[1:] == chip_of(other)[1:]


@pytest.mark.parametrize(
    ("device_kind", "kind"),
    [
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5", "TPU v5"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"),
    ],
)
def test_a_chip_is_found_by_whole_words(device_kind, kind):
    assert chip_of(device_kind).kind == kind


@pytest.mark.parametrize("device_kind", ["NVIDIA L40S", "TPU v50", "cpu", ""])
def test_a_stranger_is_refused_with_those_that_are_known(device_kind):
    with pytest.raises(UserError, match=f"no figures for a device '{device_kind}': known are .*TPU v5p"):
        chip_of(device_kind)


def test_a_program_may_use_less_than_is_sold():
    sold = {"TPU v4": 32, "TPU v5e": 16, "TPU v5p": 96, "TPU v6e": 32}
    for kind, gib in sold.items():
        assert 0.95 < CHIPS[kind].hbm_bytes / (gib * 2**30) < 1


@pytest.mark.parametrize(
    ("device_kind", "expected"),
    [("TPU v5 lite", (197e12, "TPU v5 lite, bfloat16, published")), ("NVIDIA L40S", None)],
)
def test_the_rate_of_an_accelerator_is_the_published_one(device_kind, expected, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="tpu", device_kind=device_kind)])
    assert peak() == expected
