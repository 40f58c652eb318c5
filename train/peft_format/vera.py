"""VeRA between PEFT's way of keeping it and ours: where modules are fused, its matrices are other ones."""

from collections.abc import Mapping, Sequence

import numpy as np

from limbeck.model.errors import UserError
from limbeck.train.peft_format.config import Json, flag, whole
from limbeck.train.peft_format.names import OUTSIDE, Layers, Site, put_together, take_apart
from limbeck.train.peft_format.tensors import SHARED, Found, adapted, complete, float32, read


def read_vera(found: Found, json: Json, place: object) -> Layers:
    """VeRA's vectors, and its two shared matrices.

    Theirs has one vector `d` for a fused module and a row of B for each of its outputs; ours begins with B's first row
    in every module. So B is repeated, shifted for each of our modules, and each has its `d` where its own rows are.
    """
    having = adapted(found, place)
    if not having:
        raise UserError(f"{place}: the file holds no module's vectors")
    rank = whole(json, "r", 256, place)
    fan_in, fan_out = max(site.fan_in for site in having), max(site.fan_out for site in having)
    if flag(json, "save_projection", True, place) or found.shared:
        for name in SHARED:
            if name not in found.shared:
                raise UserError(f"{place}: {name}, the matrix that all modules share, is missing")
        a = float32(read(found.shared[SHARED[0]], (rank, fan_in), place))
        b = float32(read(found.shared[SHARED[1]], (fan_out, rank), place))
    else:
        key = json.get("projection_prng_key", 0)
        a, b = drawn_projections(key, (rank, fan_in), (fan_out, rank), place)
    shifts: dict[bytes, np.ndarray] = {}
    own: list[tuple[str, Site, int, np.ndarray, np.ndarray]] = []
    for site, tensors in having.items():
        complete(tensors, ("vera_lambda_b", "vera_lambda_d"), site, place)
        d = float32(read(tensors["vera_lambda_d"], (rank,), place))
        parts = take_apart(site, float32(read(tensors["vera_lambda_b"], (site.fan_out,), place)))
        for module, rows, part in zip(site.modules, take_apart(site, np.arange(site.fan_out)), parts, strict=True):
            plain = rows[-1] == len(rows) - 1
            shift = np.arange(fan_out) if plain else rows
            shifts.setdefault(shift.tobytes(), shift)
            own.append((module, site, list(shifts).index(shift.tobytes()), d, part))
    blocks = [np.pad(b[shift], ((0, fan_out - len(shift)), (0, 0))).T for shift in shifts.values()]
    shared = {"a": np.concatenate([a.T] * len(blocks), 1), "p": np.concatenate(blocks, 0)}
    added: Layers = {"vera": {OUTSIDE: shared}}
    for module, site, block, d, part in own:
        everywhere = np.zeros(rank * len(blocks), np.float32)
        everywhere[block * rank : (block + 1) * rank] = d
        added.setdefault(module, {})[site.layer] = {"vera_d": everywhere, "vera_b": part}
    return added


def drawn_projections(
    key: object, a_shape: tuple[int, int], b_shape: tuple[int, int], place: object
) -> tuple[np.ndarray, np.ndarray]:
    """VeRA's two matrices as PyTorch draws them on a CPU from a key: uniform, of variance 2 / fan in.

    That is one number of a Mersenne Twister for each, of which the lowest 24 bits count. Raises UserError for a key
    that is none.
    """
    if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < 2**32:
        raise UserError(f"{place}: projection_prng_key={key!r}: a whole number from 0 to {2**32 - 1} is wanted")
    twister = np.random.RandomState(key)  # MT19937, started from a number as PyTorch starts it
    drawn = []
    for shape in (a_shape, b_shape):
        bits = twister.randint(0, 2**32, size=shape, dtype=np.uint32) & (2**24 - 1)
        bound = float(np.float32((6 / shape[1]) ** 0.5))
        drawn.append((bits * 2.0**-24 * (2 * bound) - bound).astype(np.float32))  # rounded once
    return drawn[0], drawn[1]


def write_vera(
    adapted: Mapping[Site, Sequence[dict[str, np.ndarray] | None]], shared: Mapping[str, np.ndarray]
) -> tuple[Json, dict[str, np.ndarray]]:
    """(the config, the tensors): the inverse of `read_vera`.

    Each of our modules that is fused in theirs gets ranks of its own, in which B is zero but for the module's rows.
    """
    fan_in, fan_out = max(site.fan_in for site in adapted), max(site.fan_out for site in adapted)
    a, p = shared["a"][:fan_in], shared["p"]
    rank = a.shape[1]
    blocks: dict[bytes, np.ndarray] = {}
    own: list[tuple[Site, list[bytes | None]]] = []
    for site, parts in adapted.items():
        keys: list[bytes | None] = []
        all_rows = take_apart(site, np.arange(site.fan_out))
        for rows, leaves in zip(all_rows, parts, strict=True):
            key = None
            if leaves:
                b = np.zeros((fan_out, rank), np.float32)
                rows = np.arange(min(fan_out, p.shape[1])) if len(parts) == 1 else rows
                b[rows] = p[:, : len(rows)].T
                key = b"" if len(parts) == 1 else rows.tobytes()
                blocks[key] = b
            keys.append(key)
        own.append((site, keys))
    order = list(blocks)
    tensors: dict[str, np.ndarray] = {
        SHARED[0]: np.concatenate([a.T] * len(order)),
        SHARED[1]: np.concatenate(list(blocks.values()), 1),
    }
    for site, keys in own:
        d, lambda_b = np.zeros((len(order), rank), np.float32), []
        for key, leaves, size in zip(keys, adapted[site], site.sizes, strict=True):
            if key is not None and leaves:
                d[order.index(key)] = leaves["vera_d"]
            lambda_b.append(leaves["vera_b"] if leaves else np.zeros(size, np.float32))
        tensors[f"{site.name}.vera_lambda_d"] = d.reshape(-1)
        tensors[f"{site.name}.vera_lambda_b"] = put_together(site, lambda_b)
    return {"r": rank * len(order), "save_projection": True}, tensors
