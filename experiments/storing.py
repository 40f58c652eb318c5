"""`limbeck store`: what a prediction store holds, and its export, compacting, pruning and merging."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.evaluation.quantities import quantity
from limbeck.inference.shards import merge
from limbeck.inference.store import PredictionStore
from limbeck.inference.words import about
from limbeck.model.errors import UserError


def run(args: argparse.Namespace) -> int:
    """Does what `limbeck store WHAT` says; exit status 1 if `status` finds predictions of other weights."""
    whats = {"status": _status, "export": _export, "compact": _compact, "prune": _prune, "merge": _merge}
    return whats[args.what](args)


def _status(args: argparse.Namespace) -> int:
    asked = None if args.queries is None else _lines(Path(args.queries))
    with PredictionStore(args.store, read_only=True) as store:
        if args.check:
            store.check()
        weights = None if args.model is None else _weights(args.model, store.manifest)
        found = store.status(weights, asked)
    print(f"{args.store}: {found['rows']} predictions, {found['queries']} queries, {quantity(found['bytes'], 'B')}")
    if args.check:
        print("every page and every row is whole")
    of = "asked so far" if asked is None else f"of {args.queries}"
    print(f"coverage: {100 * found['coverage']:.4g} % of {found['asked']} queries {of}")
    print(f"failures: {found['failures']}")
    for reason, count in found["reasons"].items():
        print(f"{count:>10}  {reason}")
    if weights is not None:
        _print_staleness(args.model, weights, found)
    for name, words in about(found["manifest"]):
        print(f"{name}: {words}")
    return 1 if found["stale"] else 0


def _print_staleness(model: str | None, weights: str, found: Mapping[str, Any]) -> None:
    own = found["manifest"].get("weights", "(none)")
    if found["stale"]:
        print(f"stale: {found['stale']} predictions are of other weights ({own[:12]}) than {model} ({weights[:12]})")
    else:
        print(f"stale: none, {model} has the weights that the predictions are of ({weights[:12]})")


def _weights(model: str, manifest: Mapping[str, str]) -> str:
    """The digest that the model's weights have when they are opened as the store's job opened its own."""
    from limbeck.experiments.asking import open_engine
    from limbeck.experiments.prediction_config import PredictionConfig

    settings = json.loads(manifest.get("job", "{}"))
    opened_as = {name: settings[name] for name in ("quantise", "coded_cache", "dtype") if name in settings}
    return open_engine(PredictionConfig(model=model, **opened_as))[0].weights_digest


def _lines(path: Path) -> list[str]:
    """Queries, one a line; empty lines are none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name a text file of queries, one a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8, a query a line") from error
    return [line for line in text.split("\n") if line.strip()]


def _export(args: argparse.Namespace) -> int:
    with PredictionStore(args.store, read_only=True) as store:
        count = store.export(args.file)
    print(f"{args.file}: {count} predictions, {quantity(Path(args.file).stat().st_size, 'B')}")
    return 0


def _compact(args: argparse.Namespace) -> int:
    with PredictionStore(args.store, read_only=True) as store:
        store.compact(args.file)
    print(f"{args.file}: a copy for look-ups, {quantity(Path(args.file).stat().st_size, 'B')}")
    return 0


def _prune(args: argparse.Namespace) -> int:
    if not args.failures and not args.unfound:
        raise UserError("nothing to prune: give --failures, --unfound, or both")
    PredictionStore(args.store, read_only=True).close()  # which makes none
    with PredictionStore(args.store) as store:
        gone = store.prune(args.failures, args.unfound)
    print(f"{args.store}: " + ", ".join(f"{_PRUNED[name]} forgotten: {count}" for name, count in gone.items()))
    return 0


_PRUNED = {"failures": "failures", "unfound": "predictions that no query finds"}


def _merge(args: argparse.Namespace) -> int:
    done = merge(args.store, args.parts)
    print(f"{args.store}: {done.new} new, {done.there} there already; failures in all: {done.failed}")
    return 0
