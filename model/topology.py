"""The chips of a TPU slice that is not there: enough for the TPU's compiler, which runs on any machine."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from limbeck.model.errors import UserError

# What libtpu takes in "NAME:2x4": how many axes a slice has, and what more it must be told.
_SLICES: dict[str, tuple[int, dict[str, str]]] = {
    "v4": (3, {"chip_config_name": "megacore"}),  # both cores of a chip as one device, as JAX has them
    "v5e": (2, {}),
    "v5p": (3, {}),
    "v6e": (2, {}),
}
# On a machine without TPUs libtpu looks for them, and for a metadata server, unless it is told what there is.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing of a chip is held, so other processes may plan beside
}


def topology(name: str) -> Sequence[Any]:
    """The devices of a slice such as "v5p:4x4x4" (64 chips), "v5e:4x8" or "v6e:8x8", to make a mesh of.

    Nothing can run there: programs are lowered under `jax.sharding.use_abstract_mesh` and compiled. Raises UserError
    for a slice that the compiler does not know, and where libtpu is not installed.
    """
    kind, _, sizes = name.partition(":")
    if kind not in _SLICES:
        raise UserError(f"topology {name!r}: name a slice of {', '.join(_SLICES)}, such as v5p:4x4x4 or v5e:4x8")
    axes, more = _SLICES[kind]
    if not re.fullmatch(r"[1-9]\d{0,3}" + r"x[1-9]\d{0,3}" * (axes - 1), sizes):
        example = "x".join(["4"] * axes)
        raise UserError(f"topology {name!r}: a slice of {kind} has {axes} axes, such as {kind}:{example}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU's compiler is not installed: `pip install 'limbeck[tpu]'`, on any Linux machine")
    for variable, value in _WITHOUT_TPU.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **more).devices
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"topology {name!r}: the compiler knows no such slice ({reason}); try {kind}:{_near(sizes)}"
        ) from error


def _near(sizes: str) -> str:
    """The same slice with each side rounded to a power of two, of which slices are made."""
    return "x".join(str(1 << max(1, (int(size) - 1).bit_length())) for size in sizes.split("x"))
