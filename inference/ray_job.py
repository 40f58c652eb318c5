"""A bulk run on many machines: Ray Data hands its requests to engines all over a cluster, and one writer keeps them."""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from limbeck.inference.agenda import Predictor
from limbeck.inference.job import answered
from limbeck.inference.requests import (
    EmbedRequest,
    GenerateRequest,
    Generation,
    HeadRequest,
    Request,
    Result,
    Sampling,
    ScoreRequest,
    Scores,
    Values,
)
from limbeck.model.errors import UserError

LOCAL = "local"  # in the place of an address: a cluster of this machine alone

_PORTION = 256  # requests that an engine is handed: they begin alike, for a run has them in order

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (GenerateRequest, ScoreRequest, EmbedRequest, HeadRequest, Generation, Scores, Values)
}


class RayPredictor:
    """As `engine`, whose digests and checks it has; the answers come from `workers` others, which `make` gives.

    `make` is called on the machines of the cluster that the program is in (`cluster`): what it reads must be there
    under the same name.
    """

    def __init__(self, engine: Predictor, make: Callable[[], Predictor], workers: int) -> None:
        self._engine, self._make, self._workers = engine, make, workers

    @property
    def weights_digest(self) -> str:
        return self._engine.weights_digest

    @property
    def tokenizer_digest(self) -> str:
        return self._engine.tokenizer_digest

    @property
    def dtype(self) -> str:
        return self._engine.dtype

    def check(self, request: Request) -> None:
        """Raises UserError for a request that the engines cannot take."""
        self._engine.check(request)

    def answers(
        self, requests: Sequence[Request], only: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Result | str]]:
        """(index, its answer or why there is none) of the requests in `only`, in the order in which they are done."""
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]

        rows = list(range(len(requests)) if only is None else only)
        together = ray.put([dumps(request) for request in requests])  # every engine is to know all of them
        blocks = max(min(self._workers, len(rows)), -(-len(rows) // _PORTION))
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= self._workers else 0
        data = ray.data.from_items([{"index": index} for index in rows], override_num_blocks=blocks).map_batches(
            _Worker,
            fn_constructor_args=(self._make, together),
            batch_size=None,  # a block
            compute=ray.data.ActorPoolStrategy(size=self._workers),
            num_cpus=0 if gpus else 1,
            num_gpus=gpus,
        )
        for row in data.iter_rows():
            yield int(row["index"]), loads(row["answer"])


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Inside, the program is in the Ray cluster of that address; before JAX is at work, which Ray's forks would upset.

    Raises UserError where Ray is not installed, and where no cluster is at `address`.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("many machines need Ray: pip install 'limbeck[ray]', or leave --ray out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # pyright: ignore[reportMissingImports]
    from ray.data import DataContext  # pyright: ignore[reportMissingImports]

    where: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        _knock(address)
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no Ray cluster at {address!r} ({reason}): start it, or give 'local'") from error
    DataContext.get_current().enable_progress_bars = False  # the run has its own
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens, for which Ray itself would wait many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class _Worker:
    """One engine of the cluster."""

    def __init__(self, make: Callable[[], Predictor], together: Any) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        self._engine = make()
        self._requests = [loads(text) for text in ray.get(together)]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = list(answered(self._engine, self._requests, batch["index"].tolist()))
        return {"index": [index for index, _ in done], "answer": [dumps(result) for _, result in done]}


def dumps(value: Request | Result | str) -> str:
    """A request or a result as JSON, which `loads` reads back as it was."""
    if isinstance(value, str):
        return json.dumps(value)
    return json.dumps({"kind": type(value).__name__, **dataclasses.asdict(value)})


def loads(text: str) -> Any:
    """What `dumps` wrote."""
    value = json.loads(text)
    if isinstance(value, str):
        return value
    kind = _KINDS[value.pop("kind")]
    given = {name: _tuples(each) for name, each in value.items()}
    return kind(**given | ({"sampling": Sampling(**value["sampling"])} if "sampling" in value else {}))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
