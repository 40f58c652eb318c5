"""Rows of the prediction store: the SQL that puts and finds them, and their texts with checksums."""

import json
import zlib
from typing import Any

PUT = "INSERT INTO predictions VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
LINK = """
INSERT INTO queries VALUES (?, ?, ?) ON CONFLICT (query)
DO UPDATE SET key = excluded.key, checksum = excluded.checksum WHERE key != excluded.key
"""
FIRST_LINK = "INSERT INTO queries VALUES (?, ?, ?) ON CONFLICT (query) DO NOTHING"
FAIL = """
INSERT INTO failures VALUES (?, ?, ?, 1) ON CONFLICT (key)
DO UPDATE SET query = excluded.query, reason = excluded.reason, attempts = attempts + 1
"""
TAKE_FAILURE = """
INSERT INTO failures SELECT :key, :query, :reason, :attempts
WHERE NOT EXISTS (SELECT 1 FROM predictions WHERE key = :key) ON CONFLICT (key)
DO UPDATE SET query = excluded.query, reason = excluded.reason, attempts = excluded.attempts
WHERE excluded.attempts > attempts
"""
ROW = "SELECT key, query, payload, checksum FROM predictions"
REASONS = "SELECT reason, count(*) FROM failures GROUP BY reason ORDER BY count(*) DESC, reason LIMIT 10"
UNFOUND = "predictions WHERE key NOT IN (SELECT key FROM queries)"
FIND = """
SELECT queries.checksum, predictions.key, predictions.query, payload, predictions.checksum
FROM queries JOIN predictions ON predictions.key = queries.key WHERE queries.query = ?
"""
FIND_COMPACTED = """
SELECT links.checksum, key, predictions.query, payload, predictions.checksum
FROM links JOIN predictions ON predictions.id = links.id WHERE links.query = ?
"""

# What json.loads comes to for a text without white space around it, all in C.
_scan = json.JSONDecoder().scan_once  # pyright: ignore[reportAttributeAccessIssue]


def payload_of(text: str) -> dict[str, Any]:
    return _scan(text, 0)[0]


def to_json(payload: dict[str, Any]) -> str:
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, sort_keys=True)


def link_checksum(query: str, key: str) -> int:
    return zlib.crc32(f"{query}\n{key}".encode())


def row_checksum(key: str, query: str, payload: str) -> int:
    return zlib.crc32(f"{key}\n{query}\n{payload}".encode())


def storable(text: str) -> str:
    """Text that is not valid Unicode, made visible instead of refused."""
    return text.encode("utf-8", "backslashreplace").decode()
