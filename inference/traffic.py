"""Who asks how often, and how it went: a rate limit for each client, and numbers that Prometheus reads."""

import bisect
import ipaddress
import math
from collections import Counter

_CLIENTS = 10_000  # that are remembered; the one that has been silent longest is forgotten
_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 1.0, 10.0)  # seconds


class Rate:
    """So many requests a second for each client, with a second's worth at once; 0 is no limit."""

    def __init__(self, per_second: float) -> None:
        self._rate, self._burst = per_second, max(1.0, per_second)
        self._left: dict[str, tuple[float, float]] = {}  # requests that a client may still make, and when that was

    def wait(self, client: str, now: float) -> float:
        """Seconds until `client` may ask again; 0 if it may, and that counts as a request."""
        if not self._rate:
            return 0.0
        client = _network(client) if ":" in client else client
        left, then = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        admitted = left >= 1
        self._left[client] = (left - admitted, now)
        if len(self._left) > _CLIENTS:
            del self._left[next(iter(self._left))]
        return 0.0 if admitted else (1 - left) / self._rate


class Traffic:
    """Requests by path and status, queries by what became of them, and how long requests for look-ups took."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.queries: Counter[str] = Counter()
        self._took = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        self.requests[path, status] += 1
        if path == "/lookup":
            self._took[bisect.bisect_left(_BUCKETS, seconds)] += 1
            self._seconds += seconds

    def lines(self) -> list[str]:
        """The numbers in Prometheus's text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
        lines = family("requests_total", "counter", "Requests answered, by path and status.")
        for (path, status), number in sorted(self.requests.items()):
            lines.append(f'limbeck_requests_total{{path="{path}",status="{status}"}} {number}')
        lines += family("queries_total", "counter", "Queries, by result; a batch is many.")
        for result in ("hit", "miss", "online", "failed", "invalid", "damaged"):
            lines.append(f'limbeck_queries_total{{result="{result}"}} {self.queries[result]}')
        lines += family("lookup_seconds", "histogram", "Time that a request to /lookup took in this process.")
        below = 0
        for limit, number in zip((*_BUCKETS, math.inf), self._took, strict=True):
            below += number
            name = "+Inf" if math.isinf(limit) else f"{limit:g}"
            lines.append(f'limbeck_lookup_seconds_bucket{{le="{name}"}} {below}')
        return [*lines, f"limbeck_lookup_seconds_sum {self._seconds:.9g}", f"limbeck_lookup_seconds_count {below}"]


def family(name: str, kind: str, words: str, value: int | None = None) -> list[str]:
    """The lines that begin what Prometheus is told under one name, and the one value if there is but one."""
    head = [f"# HELP limbeck_{name} {words}", f"# TYPE limbeck_{name} {kind}"]
    return head if value is None else [*head, f"limbeck_{name} {value}"]


def _network(client: str) -> str:
    """Who is behind an IPv6 address: whoever has one has the 2^64 beside it."""
    try:
        address = ipaddress.IPv6Address(client.partition("%")[0])
    except ValueError:
        return client
    return str(address.ipv4_mapped or address.packed[:8].hex())
