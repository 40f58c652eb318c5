"""The key of a prediction: a digest of everything that can change it, and never a model's name."""

import dataclasses
import functools
import hashlib
import numbers
import struct
from typing import Any

from limbeck.inference.requests import Request, Sampling

SCHEMA = 2  # raise it when the same request would be answered differently by newer code


def prediction_key(request: Request, *, weights: str, tokenizer: str, dtype: str) -> str:
    """Hex SHA-256 of the request and of what answers it; equal requests have equal keys.

    weights and tokenizer are digests of their content, dtype names the type that the model computes in.
    Every field of the request enters by name, so a field added later cannot be forgotten here.
    """
    return hashlib.sha256(_encode((SCHEMA, weights, tokenizer, dtype, request))).hexdigest()


def _encode(value: Any) -> bytes:
    """An injective encoding: a letter for the kind, the length, the content."""
    if isinstance(value, Sampling):  # of a million requests it is the same
        return _settings(value)
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, str):
        return _delimited(b"s", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, numbers.Integral):
        return _delimited(b"n", b"%d" % int(value))
    if isinstance(value, numbers.Real):
        number = float(value)  # 1.0 equals 1 and is the same setting
        return _encode(int(number)) if number.is_integer() else _delimited(b"n", repr(number).encode())
    if isinstance(value, tuple):
        try:  # token ids: there may be thousands
            return _delimited(b"i", struct.pack(f"<{len(value)}q", *value))
        except struct.error:
            return _delimited(b"t", b"".join(map(_encode, value)))
    raise TypeError(f"a prediction's key cannot hold {value!r}")


def _fields(value: Any) -> bytes:
    named = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return _delimited(b"d", _encode((type(value).__name__, *named)))


_settings = functools.lru_cache(maxsize=256)(_fields)


def _delimited(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<q", len(content)) + content
