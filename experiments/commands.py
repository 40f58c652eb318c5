"""What each command of `limbeck` does; heavy imports wait until a command needs them."""

import argparse
import functools
import json
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.experiments.config import LoadedConfig, apply_point, load_config, override
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.rundir import cache_folder, open_run, shared_run
from limbeck.model.errors import UserError

if TYPE_CHECKING:
    from limbeck.inference.engine import Engine


def run(args: argparse.Namespace) -> int:
    """Runs an experiment, or prints the points of its sweep."""
    loaded = load_config(args.config)
    name, config = loaded.path.stem, loaded.config
    if args.sweep is not None:
        if not loaded.sweep:
            raise UserError(f"{loaded.path} has no sweep; define sweep() in it, or leave --sweep out")
        if args.sweep == -1:
            for index, point in enumerate(loaded.sweep):
                print(index, " ".join(f"--{field} {value}" for field, value in point.items()))
            return 0
        if not 0 <= args.sweep < len(loaded.sweep):
            raise UserError(f"--sweep {args.sweep}: {loaded.path} has points 0 to {len(loaded.sweep) - 1}")
        name, config = f"{name}-{args.sweep}", apply_point(config, loaded.sweep[args.sweep])
    config = override(config, args.overrides)
    if args.dry_run:
        return _dry_run(config, args.mesh)
    workdir = Path(args.workdir or Path("runs") / name)
    if args.hosts:
        return _run_on_hosts(loaded, config, workdir, args)
    with open_run(workdir, config, args.argv) as rundir:
        # Read when JAX is imported, which nothing has done yet; an own choice in the environment stays.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder(rundir) / "xla"))
        from limbeck.model.sharding import over

        with over(args.mesh):
            return loaded.run(config, rundir)


def _run_on_hosts(loaded: LoadedConfig, config: Any, workdir: Path, args: argparse.Namespace) -> int:
    """Runs an experiment as one of several processes, over the devices of all."""
    from limbeck.experiments.distillation_config import DistillationConfig, TextDistillationConfig
    from limbeck.experiments.pretraining_config import PretrainingConfig
    from limbeck.experiments.tuning_config import TuningConfig

    if not args.mesh:
        raise UserError("--hosts: say how their devices hold the model, such as --mesh fsdp=16")
    if isinstance(config, PredictionConfig):
        raise UserError(f"{loaded.path} is a prediction job: `limbeck predict {args.config} --hosts True` runs it")
    if not isinstance(config, PretrainingConfig | TuningConfig | DistillationConfig | TextDistillationConfig):
        raise UserError(
            f"{loaded.path}: {type(config).__name__} runs in one process: leave --hosts out, or run its trainings "
            "by themselves (a pretraining, a tuning, a distillation)"
        )
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder(workdir) / "xla"))
    from limbeck.model.hosts import joined
    from limbeck.model.sharding import over

    with joined(), shared_run(workdir, config, args.argv) as rundir, over(args.mesh):
        return loaded.run(config, rundir)


def _dry_run(config: Any, sizes: Sequence[str]) -> int:
    """Prints every parameter of an experiment as it would lie, and what a device would hold; nothing is allocated."""
    import jax

    from limbeck.model.sharding import mesh_shape

    count = math.prod(mesh_shape(sizes))
    # As many devices of a CPU as are asked for: they are only compiled for.
    jax.config.update("jax_platforms", "cpu")
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        simulated = f"--xla_force_host_platform_device_count={count}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {simulated}".strip()
    from limbeck.experiments.plan_tables import headline, parameters, show, totals
    from limbeck.experiments.planned import planned
    from limbeck.experiments.planning import check_rows, held
    from limbeck.experiments.program import table_of
    from limbeck.model.sharding import make_mesh

    mesh, plan = make_mesh(sizes, jax.devices()[:count]), planned(config)
    check_rows(plan, tuple(mesh.shape.values()))
    show(headline(plan), parameters(table_of(plan, mesh)), totals(held(plan, mesh)))
    return 0


def plan(args: argparse.Namespace) -> int:
    """Compiles an experiment's program for a slice of TPUs, and prints what it would cost there."""
    # Only the TPU's compiler is wanted: what devices this machine has is not asked.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from limbeck.experiments.plan_tables import as_json, compared, details, headline, show
    from limbeck.experiments.planned import planned
    from limbeck.experiments.planning import estimate, search
    from limbeck.model.files import disk_errors, write_atomic
    from limbeck.model.topology import topology

    config = override(load_config(args.config).config, args.overrides)
    writes = isinstance(config, PredictionConfig)
    if args.tries < 1 or (args.length is not None and args.length < 1):
        raise UserError(f"--tries {args.tries}, --length {args.length}: each at least 1")
    if args.remat and writes or args.length and not writes:
        raise UserError("--remat is of a training, and --length of a prediction job: leave the other out")
    if args.out:
        with disk_errors(args.out):
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    devices = topology(args.topology)
    first = planned(config, args.remat, args.length)
    policies = (args.remat,) if args.remat or not first.trainable else ("none", "dots", "full")
    plan_of = functools.cache(lambda remat: planned(config, remat, args.length))
    if mesh := args.mesh or getattr(config, "mesh", ()):
        found = [estimate(first, first.model.remat, mesh, devices)]
    else:
        found = search(plan_of, devices, [each or "none" for each in policies], args.tries)
    best = found[0]
    kind, count = devices[0].device_kind, len(devices)
    title = f"{args.topology}, {count} chips ({kind}) of {best.has / 2**30:.1f} GiB: {headline(first)}"
    show(title, compared(found, first), details(best))
    if args.out:
        write_atomic(args.out, json.dumps(list(as_json(found)), indent=1) + "\n")
    if not best.fits:
        print(f"none fits: more chips, a larger share for tensor, remat full, or a smaller batch ({best.limit})")
        return 1
    how = f"--mesh {best.mesh}" + (f" --remat {best.remat}" if first.trainable else "")
    print(f"limbeck {'predict' if writes else 'run'} {shlex.join([args.config, *args.overrides])} {how}")
    return 0


def report(args: argparse.Namespace) -> int:
    """Prints the tables of a finished run and the path of its page; exit status 1 if a claim failed."""
    from rich.console import Console

    from limbeck.evaluation.asked import record_view
    from limbeck.evaluation.report import load_report, terminal_table

    if args.record is not None:
        Console().print(record_view(args.run, args.record))
        return 0
    results = load_report(args.run)
    Console().print(terminal_table(results))
    print(Path(args.run) / "report.html")
    return 0 if all(claim["holds"] for claim in results.get("claims") or []) else 1


def lookup(args: argparse.Namespace) -> int:
    """Prints the stored answer to a query; exit status 1 if there is none."""
    from limbeck.experiments.serving import look_up

    return look_up(args)


def serve(args: argparse.Namespace) -> int:
    """Answers look-ups over HTTP until it is interrupted."""
    from limbeck.experiments.serving import serve

    return serve(args)


def store(args: argparse.Namespace) -> int:
    """Looks after a prediction store."""
    from limbeck.experiments.storing import run

    return run(args)


def predict(args: argparse.Namespace) -> int:
    """Answers queries into a store, or says what that takes; exit status 1 if a row was refused."""
    words = args.overrides
    named = words[0] if words and not words[0].startswith("--") else ""
    config = load_config(named).config if named else PredictionConfig()
    if not isinstance(config, PredictionConfig):
        raise UserError(f"{named} is no prediction job: its config is {type(config).__name__}; `limbeck run` runs it")
    config = override(config, words[1:] if named else words)
    folder = Path(config.store).absolute().parent
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / ".cache" / "xla"))  # read when JAX is imported
    from limbeck.experiments.predicting import predict

    return predict(config, args.dry_run)


def audit(args: argparse.Namespace) -> int:
    """Measures what models inherited, or what is in data, and tells it on the models' cards."""
    from limbeck.experiments.audit_config import AuditConfig, names_of

    words = args.overrides
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    config = override(AuditConfig(what=tuple(words[:first])), words[first:])
    names = [name.replace("/", "-") for name in names_of(config.what)]
    workdir = Path(args.workdir or Path("runs") / "-".join(["audit", *names]))
    # What an audit keeps is known by the weights and the items: another one may go on in the same folder.
    with open_run(workdir, config, args.argv, fixed=False) as rundir:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder(rundir) / "xla"))
        from limbeck.experiments.auditing import run

        return run(config, rundir)


def generate(args: argparse.Namespace) -> int:
    """Prints the continuation of a prompt, or the answer to a message, as it is written."""
    from limbeck.inference.requests import GenerateRequest, Sampling
    from limbeck.model.tokenizer.chat import render
    from limbeck.train.peft_format import load_adapter

    engine = _engine(args.model, batch_size=1, dtype=args.dtype)
    adapter = engine.attach(load_adapter(args.adapter, engine.config, engine.params)) if args.adapter else ""
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.min_p, args.seed)
    messages = [{"role": "user", "content": args.prompt}]
    prompt = render(engine.tokenizer, messages) if args.chat else engine.tokenizer.prompt(args.prompt)
    for text in engine.stream(GenerateRequest(tuple(prompt), sampling, tuple(args.stop), adapter=adapter)):
        print(text, end="", flush=True)
    print()
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Runs benchmarks of lm-evaluation-harness, prints their metrics, and writes them where `--out` says."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from limbeck.evaluation.lm_eval_run import evaluate, load_tasks
    from limbeck.model.files import write_atomic

    if args.out and not Path(args.out).parent.is_dir():
        raise UserError(f"no folder {Path(args.out).parent} for {Path(args.out).name}: make it, or name another")
    if (args.limit is not None and args.limit < 1) or (args.num_fewshot or 0) < 0:
        raise UserError(f"--limit {args.limit}, --num-fewshot {args.num_fewshot}: at least 1, and at least 0")
    tasks = load_tasks(args.tasks, args.include_path, args.num_fewshot)
    engine = _engine(args.model, batch_size=64, dtype=args.dtype)
    results = {"model": args.model, **evaluate(engine, tasks, args.limit, args.chat)}
    if args.out:
        write_atomic(args.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("task", "shots", "records", "metric", "value", "± stderr"):
        left = name in ("task", "metric")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for task in results["tasks"].values():
        names = [task["title"], *(str(task[name] if task[name] is not None else "") for name in ("shots", "records"))]
        for metric in task["metrics"]:
            arrow = {True: " ↑", False: " ↓", None: ""}[metric["higher_is_better"]]
            kind = "" if metric["filter"] == "none" else f" ({metric['filter']})"
            row = [*names, f"{metric['metric']}{kind}{arrow}", _figure(metric["value"]), _figure(metric["stderr"])]
            table.add_row(*map(Text, row))
            names = ["", "", ""]
    console = Console()
    if not console.is_terminal:
        console.width = 200  # so that every row is one line for the next program
    console.print(table)
    return 0


def _figure(value: float | str | None) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value or "")


def convert(args: argparse.Namespace) -> int:
    """Writes a model as a folder that other programs load, and says in whose names."""
    from limbeck.experiments.origins import lineage_at
    from limbeck.model.params import count, digest
    from limbeck.model.pretrained import describe, lineage_of, load_pretrained, save_pretrained, stored_lineage
    from limbeck.model.pretrained.lineage import Origin, descended
    from limbeck.train.methods import plain
    from limbeck.train.peft_format import load_adapter

    target = Path(args.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already: name a new folder")
    model = load_pretrained(args.source, dtype=args.dtype)
    before = stored_lineage(args.adapter) if args.adapter else ()
    # A lineage is of the weights as they are stored: a model that brings none and was cast is read once more.
    before = before or (lineage_at(args.source) if args.dtype else lineage_of(model, args.source))
    params = plain(load_adapter(args.adapter, model.config, model.params)) if args.adapter else model.params
    lineage = before
    if digest(params) != before[0].digest:  # else it is that very model, in another folder
        how = ", ".join(filter(None, (args.dtype, f"with {Path(args.adapter).name}" if args.adapter else "")))
        origin = Origin(target.resolve().name, "converted", count(params), method=how)
        lineage = descended(origin, [("base", before)])
    save_pretrained(target, model.config, params, model.tokenizer, lineage=lineage)
    family = describe(target)[0].family
    print(f"{target}: {family or 'in our own names, which other programs do not load'}")
    return 0


def describe(args: argparse.Namespace) -> int:
    """Prints every parameter of a model and what they come to; only the headers of its files are read."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from limbeck.evaluation.quantities import quantity
    from limbeck.model.pretrained import describe as describe_model

    config, leaves = describe_model(args.model)
    table = Table(title=f"{args.model}: {config.family or 'limbeck'}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("parameter", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("stored as", overflow="fold")
    for leaf in leaves:
        shape = " x ".join(map(str, leaf.shape))
        table.add_row(leaf.path, shape, leaf.dtype, quantity(leaf.nbytes, "B"), leaf.stored_as)
    total = sum(math.prod(leaf.shape) for leaf in leaves)
    table.add_section()
    table.add_row("total", quantity(total), "", quantity(sum(leaf.nbytes for leaf in leaves), "B"))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # so that every row is one line for the next program
    console.print(table)
    return 0


def lineage(args: argparse.Namespace) -> int:
    """Prints what a model was made of, back to its foundations."""
    from rich.console import Console

    from limbeck.experiments.origins import family_tree, lineage_at
    from limbeck.model.pretrained.lineage import to_json

    found = lineage_at(args.model)
    if args.json:
        print(to_json(found), end="")
        return 0
    console = Console()
    if not console.is_terminal:
        console.width = 200  # so that nothing is cut for the next program
    console.print(family_tree(found))
    return 0


def _engine(path: str, batch_size: int, dtype: str | None = None) -> "Engine":
    from limbeck.inference.engine import Engine
    from limbeck.model.pretrained import load_pretrained

    model = load_pretrained(path, dtype=dtype)
    if model.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; put its tokenizer.json beside it")
    return Engine(model.config, model.params, model.tokenizer, batch_size, model.digest)
