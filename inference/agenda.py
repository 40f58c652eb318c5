"""What a bulk run has to do: rows checked, each request once, what the store has left out, in the order of work."""

import dataclasses
import hashlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from limbeck.inference.key import prediction_key
from limbeck.inference.lookup import normalise
from limbeck.inference.requests import GenerateRequest, Request, Result, ScoreRequest
from limbeck.inference.sharing import LEAST
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError

_SHOWN = 1000  # characters of a query that a failure is listed by: nobody reads ten million


class Predictor(Protocol):
    """What a bulk run needs of an engine; a text among its answers says why there is none.

    `only` are those that are answered, as they would be among all.
    """

    @property
    def weights_digest(self) -> str: ...
    @property
    def tokenizer_digest(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    def check(self, request: Request) -> None: ...
    def answers(
        self, requests: Sequence[Request], only: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Result | str]]: ...


@dataclass(frozen=True)
class BulkRequest:
    """A request and the text by which a look-up will ask for its answer."""

    query: str
    request: Request


@dataclass(frozen=True)
class Refused:
    """A row of the input that makes no request, where it stands, and why."""

    place: str
    reason: str

    @property
    def key(self) -> str:
        """Under which its failure is recorded: hex SHA-256, as a prediction's."""
        return _key("row", self.place)


Failure = tuple[str, str, str]  # key, query, reason


class Asked(NamedTuple):
    """A request, its prompt put small: a million of them are held at once."""

    key: str
    query: str
    bare: Request  # without its prompt
    prompt: array

    @property
    def request(self) -> Request:
        return dataclasses.replace(self.bare, prompt=tuple(self.prompt))

    @property
    def tokens(self) -> tuple[int, int]:
        """(of the prompt, at most beside it: those that may be written, or those of all options)."""
        if isinstance(self.bare, GenerateRequest):
            return len(self.prompt), self.bare.sampling.max_new_tokens
        if isinstance(self.bare, ScoreRequest):
            return len(self.prompt), sum(map(len, self.bare.options))
        return len(self.prompt), 0


class Agenda(NamedTuple):
    """total = len(due) + len(cached) + duplicate + len(refused) of the worker's rows.

    `asked` has each request of the job once, whosever it is and done or not, in the order of work: what an engine makes
    of one may hang, in its last bits, on those that are asked with it. `due` are the keys of those that are to be
    answered now. `queries_of` a key find it.
    """

    total: int
    asked: list[Asked]
    due: set[str]
    cached: list[str]
    duplicate: int
    refused: list[Failure]
    queries_of: dict[str, list[str]]

    def tokens(self) -> list[tuple[int, int]]:
        """Of each request that is due."""
        return [each.tokens for each in self.asked if each.key in self.due]


def digests(engine: Predictor) -> dict[str, str]:
    """What of an engine tells its predictions apart, by its name in a store's manifest."""
    return {"weights": engine.weights_digest, "tokenizer": engine.tokenizer_digest, "dtype": engine.dtype}


def agenda(
    engine: Predictor,
    rows: Iterable[BulkRequest | Refused],
    store: PredictionStore | None,
    mine: Callable[[str], bool] | None = None,
    beside: PredictionStore | None = None,
) -> Agenda:
    """Reads all rows; what neither the store nor the one `beside` it has is due. `mine` says by the key which rows are
    this worker's.

    Where several rows share a query, look-ups find the first one's answer, whosever it is.
    """
    there = [each for each in (store, beside) if each is not None]
    made_by = digests(engine)
    asked: dict[str, Asked] = {}
    due: set[str] = set()
    cached: list[str] = []
    refused: dict[str, Failure] = {}
    answer_of: dict[str, str] = {}
    total = duplicate = 0
    for row in rows:
        key = row.key if isinstance(row, Refused) else prediction_key(row.request, **made_by)
        own = mine is None or mine(key)
        total += own
        try:
            if isinstance(row, Refused):
                raise UserError(row.reason)
            try:
                answer_of.setdefault(store.normalise(row.query) if store is not None else normalise(row.query), key)
            except UserError:
                key = _key("query", f"{key} {row.query}")  # another row may ask the same by a query that can be found
                raise
            known = key in asked or key in refused
            if not known:
                done = any(key in each for each in there)
                if not done:
                    engine.check(row.request)
                asked[key] = _asked(key, row)
                if own and done:
                    cached.append(key)
                elif own:
                    due.add(key)
        except UserError as error:
            known = key in refused
            if own and not known:
                refused[key] = (key, row.place if isinstance(row, Refused) else shown(row.query), str(error))
        duplicate += own and known
    queries_of = defaultdict(list)
    for query, key in answer_of.items():
        queries_of[key].append(query)
    return Agenda(total, _in_order(asked.values()), due, cached, duplicate, list(refused.values()), queries_of)


def shown(query: str) -> str:
    """A query as a failure is listed by it."""
    return query if len(query) <= _SHOWN else f"{query[:_SHOWN]}... ({len(query)} characters)"


def _key(kind: str, text: str) -> str:
    """Of a failure that no request is to be had of: a digest like any other key, and no prediction's."""
    return hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _asked(key: str, row: BulkRequest) -> Asked:
    return Asked(key, row.query, dataclasses.replace(row.request, prompt=()), array("i", row.request.prompt))


def _in_order(asked: Iterable[Asked]) -> list[Asked]:
    """Of one kind and adapter together, and of those what begins alike; the longest first.

    Equal lengths need no padding, and what does not fit into memory shows at once.
    """
    groups: dict[tuple[str, str, bytes], list[Asked]] = defaultdict(list)
    for each in asked:
        start = each.prompt[:LEAST].tobytes() if len(each.prompt) > LEAST else b""
        groups[type(each.bare).__name__, each.bare.adapter, start].append(each)
    for group in groups.values():
        group.sort(key=lambda each: -len(each.prompt))
    longest_first = sorted(groups.items(), key=lambda item: (*item[0][:2], -len(item[1][0].prompt)))
    return [each for _, group in longest_first for each in group]
