"""The command `limbeck`: the words it takes and how it ends; what a command does is in commands.py."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence

from limbeck.experiments import cli_examples
from limbeck.experiments.config import built_in
from limbeck.model.errors import UserError

_DTYPES = ("float32", "bfloat16", "float16")
_STORE = "file of predictions, as `limbeck predict --store` writes it"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status.

    0: done; 1: a claim failed, a look-up missed, a row to predict was refused, no plan fits, or a store has predictions
    of other weights; 2: the user's mistake; 75: another host is gone; 130: interrupted; 143: stopped by SIGTERM, with
    everything saved.
    """
    own_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = build_parser(_asked_about(argv))
        args, rest = parser.parse_known_args(argv)
        if rest and args.command not in ("run", "plan", "predict", "audit"):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if own_process and args.command in ("run", "predict", "evaluate", "audit"):
            _with_huge_pages(argv)
        args.overrides, args.argv = rest, ["limbeck", *argv]
        from limbeck.experiments import commands

        status = getattr(commands, args.command)(args)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"limbeck: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlimbeck: interrupted; run the same command to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`); Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _with_huge_pages(argv: Sequence[str]) -> None:
    """Starts the same command again with glibc's huge pages on, which only the environment of a start can ask for.

    XLA takes fresh memory for its temporaries at every call, and the kernel hands it out page by page: a quarter of
    a training step's time on CPU went there (LOG.md). Other systems and an own GLIBC_TUNABLES are left alone.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, "-m", "limbeck.experiments.cli", *argv], environment)


def _asked_about(argv: Sequence[str]) -> str:
    """The experiment of which `run NAME --help` asks what can be set; else empty."""
    match argv:
        case ["run", name, *words] if not name.startswith("-") and {"-h", "--help"} & set(words):
            return name
    return ""


def build_parser(experiment: str = "") -> argparse.ArgumentParser:
    """The parser of all commands; run, plan, predict and audit leave the words that they do not know to a config.

    The help of run lists the fields of an `experiment`. Raises UserError as `load_config` does.
    """
    parser = argparse.ArgumentParser(
        prog="limbeck",
        description="Adapt a language model: prompt it, tune it, distil it, answer ahead of time, report.",
        epilog=cli_examples.ALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fields = cli_examples.run_fields(experiment)
    what = "run an experiment, or go on with an interrupted run"
    run = _command(commands, "run", what, cli_examples.RUN.replace("{fields}", fields))
    run.usage = "limbeck run CONFIG [--workdir DIR] [--sweep [I]] [--mesh AXIS=N ...] [--any.field VALUE ...]"
    run.add_argument("config", metavar="CONFIG", help=f"a Python file, or a built-in name: {', '.join(built_in())}")
    run.add_argument("--workdir", metavar="DIR", help="folder of the run (default: runs/NAME)")
    run.add_argument(
        "--sweep",
        metavar="I",
        nargs="?",
        type=int,
        const=-1,
        help="print the sweep's points; with I, run one",
    )

    what = "the devices that hold one model, such as data=2 fsdp=2 tensor=2"
    run.add_argument("--mesh", metavar="AXIS=N", nargs="+", default=(), help=what)
    hosts = "the same command runs on several hosts; the mesh spans the devices of all (experiments of one training)"
    run.add_argument("--hosts", action="store_true", help=hosts)

    what = "print what would train, what lies where and what a device holds; nothing is allocated (one training)"
    run.add_argument("--dry-run", action="store_true", help=what)

    what = "say what an experiment costs on a slice of TPUs, without one"
    _plan(_command(commands, "plan", what, cli_examples.PLAN))

    what = "print the table of a finished run, and where its page is"
    report = _command(commands, "report", what, cli_examples.REPORT)
    report.add_argument("run", metavar="RUN_DIR", help="folder of the run, which holds its report.json")
    report.add_argument("--record", metavar="ID", help="what every method of `adapt` was asked and said of one record")

    what = "print an answer that a store holds; exit status 1 if it does not"
    lookup = _command(commands, "lookup", what, cli_examples.LOOKUP)
    lookup.add_argument("store", metavar="STORE", help=_STORE)
    lookup.add_argument("query", metavar="QUERY", help="what is asked, as a user would write it: without a prompt")
    _online(lookup)

    serve = _command(commands, "serve", "answer look-ups over HTTP, with a page to try them on", cli_examples.SERVE)
    serve.add_argument("store", metavar="STORE", help=_STORE)
    serve.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, which is for this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes any free one (default: 8000)")
    rate = "requests a second that one client may make; 0: any number (default: 5000)"
    serve.add_argument("--rate", type=float, default=5000.0, metavar="N", help=rate)
    _online(serve)

    store = _command(commands, "store", "look after a prediction store", cli_examples.STORE)
    _store(store.add_subparsers(dest="what", required=True, metavar="WHAT"))

    what = "answer queries ahead of time, into a store; exit status 1 if one was refused"
    fields = cli_examples.prediction_fields()
    predict = _command(commands, "predict", what, cli_examples.PREDICT.replace("{fields}", fields))
    predict.usage = "limbeck predict [JOB.py] [--dry-run] [--any.field VALUE ...]"
    predict.add_argument("--dry-run", action="store_true", help="say what is new and how long it takes, and do nothing")

    what = "measure what models inherited, or what is in data"
    audit = _command(commands, "audit", what, cli_examples.AUDIT.replace("{fields}", cli_examples.audit_fields()))
    audit.usage = "limbeck audit MODEL [MODEL ...] | DATA [--workdir DIR] [--any-field VALUE ...]"
    audit.add_argument("--workdir", metavar="DIR", help="folder of the audit (default: runs/audit-NAMES)")

    generate = _command(commands, "generate", "continue a text", cli_examples.GENERATE)
    generate.add_argument("model", metavar="MODEL", help="folder or file of a model")
    generate.add_argument("prompt", metavar="PROMPT", help="the text to go on with; it may be empty")
    generate.add_argument("--adapter", metavar="FOLDER", help="an adapter in PEFT's format over the model")
    generate.add_argument("--chat", action="store_true", help="PROMPT is a user's message; the model's turn is printed")
    generate.add_argument("--dtype", choices=_DTYPES, help="cast weights and activations (default: as stored)")
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="(default: 64)")
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)"
    )
    generate.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens (default: all)"
    )
    generate.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the fewest tokens that together hold P of the probability (default: all)",
    )
    generate.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="draw from tokens at least P times as likely as the likeliest (default: all)",
    )
    generate.add_argument("--seed", type=int, default=0, help="(default: 0)")
    generate.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )

    evaluate = _command(commands, "evaluate", "run benchmarks of lm-evaluation-harness", cli_examples.EVALUATE)
    evaluate.add_argument("model", metavar="MODEL", help="folder or file of a model")
    evaluate.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help="names, groups, tags, patterns with *, or YAML files"
    )
    evaluate.add_argument(
        "--num-fewshot", type=int, metavar="K", help="solved examples in each prompt (default: as the task says)"
    )
    evaluate.add_argument("--include-path", metavar="DIR", help="a folder with task files of yours")
    evaluate.add_argument("--limit", type=int, metavar="N", help="the first N records of each task (default: all)")
    evaluate.add_argument("--chat", action="store_true", help="ask in conversations, by the tokenizer's template")
    evaluate.add_argument("--dtype", choices=_DTYPES, help="cast weights and activations (default: as stored)")
    evaluate.add_argument("--out", metavar="FILE", help="write metrics, versions and digests as JSON")

    what = "print the parameters of a model: names, shapes, types, bytes"
    describe = _command(commands, "describe", what, cli_examples.DESCRIBE)
    describe.add_argument("model", metavar="MODEL", help="folder or file of a model")

    what = "print what a model was made of, back to its foundations"
    lineage = _command(commands, "lineage", what, cli_examples.LINEAGE)
    lineage.add_argument("model", metavar="MODEL", help="folder of a model or an adapter, or file of a model")
    lineage.add_argument("--json", action="store_true", help="everything that is known, with every field of each run")

    convert = _command(commands, "convert", "write a model as a folder that other programs load", cli_examples.CONVERT)
    convert.add_argument("source", metavar="SRC", help="folder or file of a model")
    convert.add_argument("--adapter", metavar="FOLDER", help="an adapter in PEFT's format, folded into the weights")
    convert.add_argument("target", metavar="DST", help="a folder that is not there yet")
    convert.add_argument("--dtype", choices=_DTYPES, help="cast the weights (default: as stored)")
    return parser


def _plan(plan: argparse.ArgumentParser) -> None:
    plan.usage = "limbeck plan CONFIG --topology KIND:SIZES [--mesh AXIS=N ...] [--any.field VALUE ...]"
    what = "a training or a prediction job: a Python file, or a built-in name"
    plan.add_argument("config", metavar="CONFIG", help=what)
    plan.add_argument("--topology", metavar="KIND:SIZES", required=True, help="v5p:4x4x4, v5e:4x8, v6e:8x8, v4:2x2x2")
    plan.add_argument("--mesh", metavar="AXIS=N", nargs="+", default=(), help="(default: the fastest that fits)")
    policy = "what the backward pass computes again (default: with a mesh the config's, else each)"
    plan.add_argument("--remat", choices=("none", "dots", "full"), help=policy)
    plan.add_argument("--tries", type=int, default=6, metavar="N", help="a search compiles so many (default: 6)")
    plan.add_argument("--length", type=int, metavar="N", help="places of a row of answers, of a prediction job")
    plan.add_argument("--out", metavar="FILE", help="write all figures as JSON")


def _store(commands: "argparse._SubParsersAction") -> None:
    told = {
        "status": "say what the store holds",
        "export": "write all predictions to a Parquet file",
        "compact": "write an immutable copy for look-ups",
        "prune": "forget failures, predictions that no query finds, or both, and give their room back",
        "merge": "take in other stores of the same job",
    }
    status, export, compact, prune, merge = (
        _command(commands, name, what, cli_examples.of_store(name)) for name, what in told.items()
    )
    for command in (status, export, compact, prune, merge):
        command.add_argument("store", metavar="STORE", help=_STORE)
    status.add_argument("--model", metavar="MODEL", help="say how many predictions are of other weights than MODEL's")
    status.add_argument("--queries", metavar="FILE", help="coverage of these queries, one a line")
    status.add_argument("--check", action="store_true", help="read all of it, and find any damage")
    export.add_argument("file", metavar="FILE", help="the Parquet file, which may be an older export")
    compact.add_argument("file", metavar="FILE", help="the copy, which may take the place of an older one")
    prune.usage = "limbeck store prune STORE (--failures | --unfound | --failures --unfound)"
    prune.add_argument("--failures", action="store_true", help="forget what could not be predicted")
    unfound = "forget predictions that no look-up can find, such as a query's second and later samples"
    prune.add_argument("--unfound", action="store_true", help=unfound)
    merge.add_argument("parts", nargs="+", metavar="PART", help="stores to copy from, which stay as they are")


def _online(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--online",
        nargs="?",
        const="",
        metavar="MODEL",
        help="ask the model what the store lacks, and record it (MODEL: where it is now, if the store knows another)",
    )


def _command(
    commands: "argparse._SubParsersAction", name: str, what: str, examples: str = ""
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --seed is a field of the experiment, not the start of some option
    )


if __name__ == "__main__":
    sys.exit(main())
