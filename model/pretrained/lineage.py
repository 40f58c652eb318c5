"""Where a model comes from: itself and all that it was made of, back to its foundations.

A folder that `save_pretrained` writes holds it as `lineage.json`, under the manifest. A model is named by the digest
of its parameters; names of folders are told for the reader's sake alone.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from limbeck.model.errors import UserError

LINEAGE = "lineage.json"
Made = Literal["found", "initialised", "pretrained", "tuned", "distilled", "pruned", "cut", "converted"]
Role = Literal["base", "teacher"]


@dataclass(frozen=True)
class Data:
    """What a model was trained on: a name, the number of records or documents, hex SHA-256 of what they say."""

    name: str
    records: int
    digest: str


@dataclass(frozen=True)
class Parent:
    """A model that another was made of: its weights ("base"), or what it said ("teacher"); hex digest of its own."""

    role: Role
    digest: str


@dataclass(frozen=True)
class Origin:
    """How one model was made.

    `digest` is the hex SHA-256 of its parameters, `parameters` and `trained` are counts, `method` says how ("lora",
    "full, forward_kl"), `config` is the experiment's, by dotted names, `cost` what making it took, `commit` and
    `versions` are those of the code.
    """

    name: str
    made: Made
    parameters: int
    digest: str = ""  # of a model that is not saved yet
    method: str = ""
    trained: int = 0
    parents: tuple[Parent, ...] = ()
    data: tuple[Data, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


Lineage = tuple[Origin, ...]  # the model itself, then its parents and theirs, each once, a child before its parents


def data_of(name: str, items: Iterable[Any]) -> Data:
    """The `Data` of records, texts or conversations in their order, each told as canonical JSON."""
    sha, records = hashlib.sha256(), 0
    for item in items:
        text = json.dumps(item, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        sha.update(len(text).to_bytes(8, "big") + text)
        records += 1
    return Data(name, records, sha.hexdigest())


def descended(origin: Origin, parents: Iterable[tuple[Role, Lineage]]) -> Lineage:
    """The lineage of a model that is made of others, each with its own lineage."""
    parents = [(role, lineage) for role, lineage in parents if lineage]
    named = tuple(Parent(role, lineage[0].digest) for role, lineage in parents)
    before: dict[str, Origin] = {}
    for _, lineage in parents:
        for each in lineage:
            before.pop(each.digest, None)  # once more, and later: a parent stands behind all of its children
            before[each.digest] = each
    return (replace(origin, parents=named), *before.values())


def ancestors(lineage: Lineage) -> list[tuple[Role, int, Origin]]:
    """(role, how many steps back, model) of all that the first model was made of, depth first, as a tree reads.

    What a model was made of is told where it first stands; where it stands again, the model alone.
    """
    by_digest = {each.digest: each for each in lineage}
    opened: set[str] = set()

    def back(child: Origin, steps: int) -> list[tuple[Role, int, Origin]]:
        if child.digest in opened:
            return []
        opened.add(child.digest)
        found = []
        for parent in child.parents:
            if parent.digest in by_digest:
                origin = by_digest[parent.digest]
                found += [(parent.role, steps, origin), *back(origin, steps + 1)]
        return found

    return back(lineage[0], 1)


def foundations(lineage: Lineage) -> list[Origin]:
    """The models whose weights the first one's go back to, and that were trained: no teacher, and no random start."""
    by_digest = {each.digest: each for each in lineage}
    found: list[Origin] = []
    seen: set[str] = set()
    todo = [lineage[0]]
    while todo:
        for parent in todo.pop().parents:
            if parent.role == "base" and parent.digest in by_digest and parent.digest not in seen:
                seen.add(parent.digest)
                origin = by_digest[parent.digest]
                todo.append(origin)
                if origin.made != "initialised" and not any(each.role == "base" for each in origin.parents):
                    found.append(origin)
    return found


def to_json(lineage: Lineage) -> str:
    """The text of lineage.json."""
    return json.dumps({"lineage": [asdict(each) for each in lineage]}, indent=1, ensure_ascii=False) + "\n"


def read_lineage(text: str, place: str) -> Lineage:
    """The lineage that a lineage.json tells. Raises UserError, naming `place`, where it tells none."""
    try:
        found = tuple(_origin(each) for each in json.loads(text)["lineage"])
        if not found:
            raise ValueError("it names no model")
        return found
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{place} tells no lineage ({error}): remove it, or write the model again") from error


def _origin(told: Mapping[str, Any]) -> Origin:
    """One model, checked field by field; fields of a later version are passed over."""
    parents = tuple(Parent(**each) for each in told["parents"])
    data = tuple(Data(**each) for each in told["data"])
    known = {each.name for each in fields(Origin)}
    origin = Origin(
        **{**{key: value for key, value in told.items() if key in known}, "parents": parents, "data": data}
    )
    texts = [origin.name, origin.digest, origin.method, *(part for each in data for part in (each.name, each.digest))]
    texts += [each.digest for each in parents] + ([] if origin.commit is None else [origin.commit])
    numbers = [origin.parameters, origin.trained, *(each.records for each in data)]
    if not all(isinstance(each, str) for each in texts) or not all(type(each) is int for each in numbers):
        raise TypeError("a name is no text, or a count no whole number")
    if not all(isinstance(each, dict) for each in (origin.config, origin.cost, origin.versions)):
        raise TypeError("config, cost and versions are not objects")
    if any(not isinstance(value, int | float | None) for key, value in origin.cost.items() if key != "joules_source"):
        raise TypeError("a cost is no number")
    if origin.made not in get_args(Made) or any(each.role not in get_args(Role) for each in parents):
        raise ValueError(f"made in one of the ways {', '.join(get_args(Made))}, of a {' or a '.join(get_args(Role))}")
    return origin
