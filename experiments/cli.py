"""The command `limbeck`: the words it takes and how it ends; what a command does is in commands.py."""

import argparse
import os
import platform
import sys
import textwrap
from collections.abc import Sequence

from limbeck.experiments.audit_config import AuditConfig
from limbeck.experiments.config import built_in, flatten
from limbeck.experiments.prediction_config import ELSEWHERE, PredictionConfig
from limbeck.model.errors import UserError

_EXAMPLES = """\
examples:
  limbeck run quickstart                              the whole lesson, into runs/quickstart
  limbeck run quickstart --seed 1 --workdir /tmp/a    any field of the experiment is set by its name
  limbeck report runs/quickstart                      the table of a finished run, and where its page is
  limbeck generate MODEL 'plum: drupe, lemon:'        continue a text
  limbeck describe MODEL                              its parameters, their shapes and bytes
  limbeck evaluate MODEL --tasks piqa                 a benchmark of lm-evaluation-harness
  limbeck convert model.bin FOLDER                    as a folder that other programs load
  limbeck predict --model MODEL --task spam.jsonl --store spam.db
  limbeck lookup spam.db 'win a free phone'           an answer from before, without a model
  limbeck audit MODEL                                 what biases it carries, told on its card
  limbeck serve spam.db                               the same over HTTP, and a page to try it on

A run that was interrupted goes on where it was: run the same command again.
`limbeck COMMAND --help` says more about each.
"""

_RUN_EXAMPLES = """\
examples:
  limbeck run quickstart --task my_records.jsonl
  limbeck run shakespeare --texts my.txt --root . --model 5m --workdir runs/mine    pretrain on a text of yours
  limbeck run sst2 --task my_records.jsonl --model runs/mine/model                  tune it: a head for the labels
  limbeck run chat --model MODEL --chats conversations.jsonl                        tune it on conversations
  limbeck run my_experiment.py --model.width 64 --sizes 1 2 3 --scan False
  limbeck run my_experiment.py --sweep                the numbered points of its sweep
  limbeck run my_experiment.py --sweep 3              one of them, into runs/my_experiment-3
"""

_PREDICT_EXAMPLES = """\
examples:
  limbeck predict --model MODEL --task spam.jsonl --store spam.db --shots 4
  limbeck predict --model MODEL --task spam.jsonl --input queries.csv --store spam.db --output answers.jsonl
  limbeck predict --model MODEL --input prompts.jsonl --store texts.db --samples 5 --temperature 0.8 --dry-run
  limbeck predict --model MODEL --input batch.jsonl --store batch.db --output results.jsonl
  limbeck predict my_job.py --workers 4
  limbeck predict my_job.py --mesh fsdp=2 tensor=4                       one model over eight devices
  limbeck lookup spam.db 'win a free phone'

The queries are a split of the task; or the rows of an input, which have the fields that the task's template names, or
"prompt" where there is no task; or lines of the OpenAI batch format. An input is a .jsonl, .csv or .parquet file or
tfds:NAME. Predictions that the store holds already are not computed again; an interrupted job goes on where it was.

fields: {fields}
A job file sets them as an experiment does: config = PredictionConfig(...), main = "limbeck.experiments.predicting:run".
"""

_SERVE_EXAMPLES = """\
examples:
  limbeck serve spam.db
  curl --get http://127.0.0.1:8000/lookup --data-urlencode 'q=win a free phone'
  curl http://127.0.0.1:8000/lookup --json '{"queries": ["win a free phone", "lunch?"]}'

http://127.0.0.1:8000/ is a page to try queries on; /health and /metrics (Prometheus) are for programs. A new file
that is moved to STORE, as `limbeck store compact` does, is taken on within a second and without a failed request.
"""

_STORE_EXAMPLES = """\
examples:
  limbeck store status spam.db --model MODEL          coverage, failures; exit status 1 if MODEL has other weights
  limbeck store export spam.db spam.parquet           every prediction, by key; the same content is the same bytes
  limbeck store compact spam.db spam.serving.db       a copy for look-ups, put in the place of an older one
  limbeck store prune spam.db --failures
  limbeck store merge spam.db part0.db part1.db       first wins; parts of other weights are refused
"""

_GENERATE_EXAMPLES = """\
examples:
  limbeck generate MODEL 'plum: drupe, lemon:' --stop ,
  limbeck generate MODEL 'Once upon a time' --max-new-tokens 100 --temperature 0.8 --top-p 0.95 --seed 1
  limbeck generate MODEL 'What is a hesperidium?' --chat

MODEL is a Hugging Face folder, one that Limbeck wrote, or a llama2.c .bin file. The text appears as it is written.
"""

_EVALUATE_EXAMPLES = """\
examples:
  limbeck evaluate MODEL --tasks piqa arc_easy --num-fewshot 5 --out scores.json
  limbeck evaluate MODEL --tasks 'mmlu_*' --limit 20
  limbeck evaluate MODEL --tasks my_task --include-path my_tasks    task files of yours: no network is needed

Tasks, prompts and metrics are those of lm-evaluation-harness: pip install 'limbeck[eval]'. `lm-eval ls tasks` lists
the tasks; a group or a tag stands for its tasks. A log-likelihood, a text and a metric are what its own `hf` adapter
gives for the same weights. What is longer than the model loses its beginning, as there, and is counted.

A task file my_tasks/my_task.yaml over records in JSON Lines:

  task: my_task
  dataset_path: json
  dataset_kwargs: {data_files: {test: my_records.jsonl}}    # a path counts from the folder where you run the command
  test_split: test
  output_type: multiple_choice
  doc_to_text: "{{question}}\\nAnswer:"
  doc_to_choice: ["no", "yes"]
  doc_to_target: "{{answer}}"

A task file may name Python functions, which are run: use files that you trust. Records of published tasks come from
the Hugging Face hub, once; with HF_HUB_OFFLINE=1 only those are read that are on this machine.
"""

_AUDIT_EXAMPLES = """\
examples:
  limbeck audit runs/quickstart/models/base runs/quickstart/models/full runs/quickstart/models/distilled
  limbeck audit MODEL --pairs crows_pairs.jsonl --winobias winobias --questions bbq.jsonl
  limbeck audit MODEL --task my_task                  its records with words swapped, and by their groups
  limbeck audit MODEL --training train.txt --held-out other.txt       what comes out word for word
  limbeck audit my_task                               who is mentioned, duplicates, leaks, personal data
  limbeck audit my_texts.txt --held-out test.txt

Models that are related (see `limbeck lineage`) are compared item by item, a student also with the same student without
its teacher: put them all in one audit. What is measured is told on the cards of models that Limbeck wrote.

fields: {fields}
"""

_CONVERT_EXAMPLES = """\
examples:
  limbeck convert stories260K.bin stories260k         llama2.c's format as a Llama folder
  limbeck convert llama-8b llama-8b-bf16 --dtype bfloat16
  limbeck convert llama-8b tuned-8b --adapter runs/sst2/adapter    the model with an adapter folded in

The folder has the names and the config of the family that the model came from, or of the first that can say what it is.
"""

_DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status.

    0: done; 1: a claim failed, or a look-up missed; 2: the user's mistake; 130: interrupted.
    """
    own_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in ("run", "predict", "audit"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if own_process and args.command in ("run", "predict", "evaluate", "audit"):
        _with_huge_pages(argv)
    args.overrides, args.argv = rest, ["limbeck", *argv]
    try:
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


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `run` and `predict` leave the words that they do not know to a config."""
    parser = argparse.ArgumentParser(
        prog="limbeck",
        description="Adapt a language model: prompt it, tune it, distil it, answer ahead of time, report.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = _command(commands, "run", "run an experiment, or go on with an interrupted run", _RUN_EXAMPLES)
    run.usage = "limbeck run CONFIG [--workdir DIR] [--sweep [I]] [--any.field VALUE ...]"
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

    report = _command(commands, "report", "print the table of a finished run, and where its page is")
    report.add_argument("run", metavar="RUN_DIR")
    report.add_argument("--record", metavar="ID", help="what every method of `adapt` was asked and said of one record")

    lookup = _command(commands, "lookup", "print an answer that a store holds; exit status 1 if it does not")
    lookup.add_argument("store", metavar="STORE")
    lookup.add_argument("query", metavar="QUERY")
    _online(lookup)

    serve = _command(commands, "serve", "answer look-ups over HTTP, with a page to try them on", _SERVE_EXAMPLES)
    serve.add_argument("store", metavar="STORE")
    serve.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, which is for this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes any free one (default: 8000)")
    rate = "requests a second that one client may make; 0: any number (default: 5000)"
    serve.add_argument("--rate", type=float, default=5000.0, metavar="N", help=rate)
    _online(serve)

    store = _command(commands, "store", "look after a prediction store", _STORE_EXAMPLES)
    _store(store.add_subparsers(dest="what", required=True, metavar="WHAT"))

    what = "answer queries ahead of time, into a store; exit status 1 if one was refused"
    predict = _command(commands, "predict", what, _PREDICT_EXAMPLES.replace("{fields}", _prediction_fields()))
    predict.usage = "limbeck predict [JOB.py] [--dry-run] [--any.field VALUE ...]"
    predict.add_argument("--dry-run", action="store_true", help="say what is new and how long it takes, and do nothing")

    fields = _fields([name for name in flatten(AuditConfig()) if name != "what"])
    what = "measure what models inherited, or what is in data"
    audit = _command(commands, "audit", what, _AUDIT_EXAMPLES.replace("{fields}", fields))
    audit.usage = "limbeck audit MODEL [MODEL ...] | DATA [--workdir DIR] [--any-field VALUE ...]"
    audit.add_argument("--workdir", metavar="DIR", help="folder of the audit (default: runs/audit-NAMES)")

    generate = _command(commands, "generate", "continue a text", _GENERATE_EXAMPLES)
    generate.add_argument("model", metavar="MODEL", help="folder or file of a model")
    generate.add_argument("prompt", metavar="PROMPT")
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
        "--top-p", type=float, default=1.0, metavar="P", help="... that hold P of the probability"
    )
    generate.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="... with P times the likeliest's probability"
    )
    generate.add_argument("--seed", type=int, default=0, help="(default: 0)")
    generate.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )

    evaluate = _command(commands, "evaluate", "run benchmarks of lm-evaluation-harness", _EVALUATE_EXAMPLES)
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

    describe = _command(commands, "describe", "print the parameters of a model: names, shapes, types, bytes")
    describe.add_argument("model", metavar="MODEL", help="folder or file of a model")

    lineage = _command(commands, "lineage", "print what a model was made of, back to its foundations")
    lineage.add_argument("model", metavar="MODEL", help="folder of a model or an adapter, or file of a model")
    lineage.add_argument("--json", action="store_true", help="everything that is known, with every field of each run")

    convert = _command(commands, "convert", "write a model as a folder that other programs load", _CONVERT_EXAMPLES)
    convert.add_argument("source", metavar="SRC", help="folder or file of a model")
    convert.add_argument("--adapter", metavar="FOLDER", help="an adapter in PEFT's format, folded into the weights")
    convert.add_argument("target", metavar="DST", help="a folder that is not there yet")
    convert.add_argument("--dtype", choices=_DTYPES, help="cast the weights (default: as stored)")
    return parser


def _prediction_fields() -> str:
    return _fields([name.removeprefix("prompt.") for name in flatten(PredictionConfig()) if name not in ELSEWHERE])


def _fields(short: Sequence[str]) -> str:
    return textwrap.fill(" ".join(f"--{name.replace('_', '-')}" for name in short), 116, break_on_hyphens=False)


def _store(commands: "argparse._SubParsersAction") -> None:
    told = {
        "status": "say what the store holds",
        "export": "write all predictions to a Parquet file",
        "compact": "write an immutable copy for look-ups",
        "prune": "forget rows, and give their room back",
        "merge": "take in other stores of the same job",
    }
    status, export, compact, prune, merge = (_command(commands, name, what) for name, what in told.items())
    for command in (status, export, compact, prune, merge):
        command.add_argument("store", metavar="STORE")
    status.add_argument("--model", metavar="MODEL", help="say how many predictions are of other weights than MODEL's")
    status.add_argument("--queries", metavar="FILE", help="coverage of these queries, one a line")
    status.add_argument("--check", action="store_true", help="read all of it, and find any damage")
    export.add_argument("file", metavar="FILE")
    compact.add_argument("file", metavar="FILE")
    prune.add_argument("--failures", action="store_true", help="what could not be predicted")
    prune.add_argument("--unfound", action="store_true", help="predictions that no query finds, as of a second sample")
    merge.add_argument("parts", nargs="+", metavar="PART")


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
