"""What each kind of accelerator has: arithmetic, memory, links, clock. By JAX's `device_kind`, one entry a JAX device.

FLOPs are dense bfloat16, from the makers' data sheets. None stands for what is not published or differs within a kind.

TPUs (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e):

- Links: the pages used to say Gbit/s a chip (v4 2,400, v5e 1,600, v5p 4,800, v6e 3,584) and now say GB/s in both
  directions together (v5e 400, v5p 1,200, v6e 800). Both are one figure, all links of a chip in one direction, but for
  v6e, where the newer one is taken. `axes` are those of the torus: two links a chip along each.
- Memory: not the data sheet's, but what a program may use, the rest being reserved: what libtpu 0.0.42's compiler names
  in "exceeds available HBM (15.75G)" for a program that is far too large. G is 2^30 there.
- Clock: peak = 2 FLOPs x multipliers x clock. v4 and v5p have 8 systolic arrays of 128 x 128 in two cores that work as
  one, v5e 4 in one core, v6e 4 of 256 x 256. The compiler's `estimated_cycles` for a product of two 8192 x 8192 in
  bfloat16 are by 8 (v4), 11 (v5p), 14 (v5e) and 42% (v6e) more than that of the peak.

GPUs (nvidia.com's data sheets): memory as sold, NVLink in one direction, half of what they advertise.
"""

from typing import NamedTuple

from limbeck.model.errors import UserError, nearest

_GIB = 2**30


class Chip(NamedTuple):
    """One kind of device: rates are a second, `link_bytes_per_second` of all its links in one direction."""

    kind: str
    flops_per_second: float
    hbm_bytes: float | None
    hbm_bytes_per_second: float | None
    link_bytes_per_second: float | None
    clock_hz: float | None = None
    axes: int = 1


_V5E = Chip("TPU v5e", 197e12, 15.75 * _GIB, 819e9, 200e9, 1.5e9, axes=2)
_V5P = Chip("TPU v5p", 459e12, 95.74 * _GIB, 2765e9, 600e9, 1.75e9, axes=3)
_V6E = Chip("TPU v6e", 918e12, 31.25 * _GIB, 1640e9, 400e9, 1.75e9, axes=2)

# In order: a kind that begins like another stands before it.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 450e9),
        Chip("NVIDIA H100 PCIe", 756e12, 80e9, 2000e9, None),
        Chip("NVIDIA H100", 989e12, 80e9, 3350e9, 450e9),
        # Sold with 40 and with 80 GB, at two speeds; the V100 with 16 and with 32.
        Chip("NVIDIA A100", 312e12, None, None, 300e9),
        Chip("NVIDIA L4", 121e12, 24e9, 300e9, None),
        Chip("NVIDIA A10", 125e12, 24e9, 600e9, None),
        Chip("Tesla V100", 125e12, None, 900e9, None),
        Chip("Tesla T4", 65e12, 16e9, 320e9, None),
        # Both cores of a chip as one device: libtpu's topology of a v4 needs chip_config_name="megacore" for that.
        Chip("TPU v4", 275e12, 30.75 * _GIB, 1228e9, 300e9, 1.05e9, axes=3),
        _V5E._replace(kind="TPU v5 lite"),
        _V5E,
        _V5P,
        _V5P._replace(kind="TPU v5"),
        _V6E._replace(kind="TPU v6 lite"),
        _V6E,
    )
}


def known(device_kind: str) -> Chip | None:
    """The chip whose kind begins `device_kind`, or None for a stranger."""
    for kind, chip in CHIPS.items():
        # In whole words: an L40S is no L4, and does not compute like one.
        if f"{device_kind} ".startswith((f"{kind} ", f"{kind}-")):
            return chip
    return None


def chip_of(device_kind: str) -> Chip:
    """The chip whose kind begins `device_kind`; raises UserError that names those that are known."""
    chip = known(device_kind)
    if chip is None:
        close = nearest(device_kind, CHIPS)
        raise UserError(f"no figures for a device {device_kind!r}: known are {', '.join(CHIPS)}{close}")
    return chip
