"""A teacher in a training: its leaves beside the student's, the rows that both read, the loss between them."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax

from limbeck.distill.across import across_loss
from limbeck.distill.features import add_matchers, matching
from limbeck.distill.rows.on_policy import on_policy, prompted_rows, with_own
from limbeck.distill.rows.paired import prompt_distillation, two_tokenizers_on_task
from limbeck.distill.rows.rationales import RATIONALE, rationale_examples, written_rationales
from limbeck.distill.rows.teacher_cache import bytes_per_token, cached_teacher
from limbeck.distill.rows.token_bytes import first_byte_V
from limbeck.distill.rows.transfer_set import answered, sampled, write_transfer_set
from limbeck.distill.schedules import scheduled
from limbeck.distill.students.config import StudentConfig
from limbeck.distill.students.shape import between
from limbeck.distill.students.start import student_of, student_shape
from limbeck.distill.teacher import distillation_loss, student_only, with_teacher
from limbeck.experiments.answering import Setting
from limbeck.experiments.distillation_config import TeachingConfig, check_portions
from limbeck.experiments.distillation_set import audited_set
from limbeck.experiments.origins import own_lineage
from limbeck.experiments.rundir import cache_folder, commit, plain, stage, versions
from limbeck.experiments.start import Start, Taught
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.flops import forward_flops
from limbeck.model.params import count
from limbeck.model.pretrained import save_pretrained
from limbeck.model.pretrained.lineage import Lineage, Made, Origin, data_of, descended
from limbeck.model.sharding import placed
from limbeck.model.transformer import shapes
from limbeck.prompting.predict import answer_tokens
from limbeck.tasks.task import Record
from limbeck.train.config import FitConfig
from limbeck.train.data import Rows, batches, pack
from limbeck.train.examples import completions
from limbeck.train.loss import Batch
from limbeck.train.select import Selection

_MADE: dict[str, Made] = {"random": "initialised", "layers": "cut", "pruned": "pruned"}
_WRITING = ("written", "transfer_tokens", "rationales")
_MEASURED = 8  # rows at least, in whole batches, on which what is pruned is found unimportant


def student_folder(
    student: StudentConfig, teacher: Start, batches: Callable[[int], Sequence[Batch]], folder: Path, seed: int
) -> str:
    """The folder of the student as it starts, made once; `batches(n)`, of n rows, say what of it a pruned one keeps."""
    if student.folder:
        return student.folder

    def made() -> int:
        measured = batches(_MEASURED) if student.start == "pruned" else ()
        config, params = student_of(student, teacher.config, teacher.params, jax.random.key(seed), measured)
        origin = Origin(
            f"{folder.name} start",
            _MADE[student.start],
            count(params),
            config=plain(student),
            commit=commit(),
            versions=versions(),
        )
        before: Lineage = () if student.start == "random" else own_lineage(teacher)
        lineage = descended(origin, [("base", before)])
        save_pretrained(folder / "start", config, params, teacher.tokenizer, lineage=lineage)
        return count(params)

    stage(folder, "start", made)
    return str(folder / "start")


def start_flops(student: StudentConfig, teacher: ModelConfig, fit: FitConfig) -> float:
    """FLOPs of making what a student starts from: of one that is pruned the forward passes before each cut."""
    if student.start != "pruned":
        return 0.0
    rows = -(-_MEASURED // fit.batch_size) * fit.batch_size
    measured = [teacher, *between(teacher, student_shape(student, teacher), student.cuts)[:-1]]
    return sum(forward_flops(config, shapes(config), rows * fit.length, fit.length / 2) for config in measured)


def taught_by(
    teachers: Sequence[Start],
    config: TeachingConfig,
    fit: FitConfig,
    rundir: Path,
    seed: int,
    at: Setting | None = None,
) -> Taught:
    """What the teachers make of a training, for a task (`at`) or on text.

    Raises UserError for several teachers, a cache, matched features or own answers where the student's tokenizer is
    another than its teacher's, and as `check_portions` does.
    """
    check_portions(config, fit)
    first = teachers[0]

    def taught(start: Start, sources: Sequence[tuple[Rows, float]]):
        differ = start.tokenizer.digest != first.tokenizer.digest
        if differ:
            _check_across(config, at, len(teachers))
        past, mixture = start.past, list(sources)
        if at is not None:
            records = training_records(config, at, first, seed)
            mixture = [(rows, 1.0) for rows in task_rows(config, fit, at, start, first, records, seed)] or mixture
            given = at.task.splits["train"]
            known = {record["id"]: record for record in given}
            # Answers that are the data's own word for word are the teacher's, too, where it was asked for answers.
            wrote = [each for each in records if config.written or known.get(each["id"]) != each]
            if wrote:
                how = {name: value for name in _WRITING if (value := getattr(config, name))}
                engine = Engine(first.config, first.params, first.tokenizer)
                audited_set(at.rundir, at.task, wrote, how, engine, own_lineage(first))
                told = data_of(f"{at.task.name}, as its teacher wrote it", wrote)
                past = past._replace(data=(told,) if config.written else (*past.data, told))
        taught_it = tuple(("teacher", own_lineage(teacher)) for teacher in teachers)
        settings = {f"teaching.{name}": value for name, value in plain(config).items()}
        past = past._replace(
            parents=(*past.parents, *taught_it), objective=config.distil.objective, teaching=settings
        )
        if config.distil.cache:
            ask = partial(_cached, config, fit, first, start.config.vocab_size, rundir, seed)
            mixture = [(ask(rows), weight) for rows, weight in mixture]
        stream = scheduled(batches(mixture, fit.batch_size, seed), config.distil, fit.steps)
        matched = matching(config.match, start.config, first.config)
        kind = at.task.kind if at and at.head else "generation"
        if differ:
            bytes_of = (first_byte_V(start.tokenizer), first_byte_V(first.tokenizer))
            soften = {"temperature": config.distil.temperature, "hard_weight": config.distil.hard_weight}
            loss_fn = across_loss(start.config, first.config, config.across, **soften, first_bytes=bytes_of)
        else:
            live = None if config.distil.cache else [teacher.config for teacher in teachers]
            loss_fn = distillation_loss(
                start.config,
                live,
                config.distil,
                kind=kind,
                matching=matched,
                cached_vocab_size=first.config.vocab_size if config.distil.cache else None,
            )
        if config.own:
            assert at is not None
            engine = Engine(start.config, start.params, start.tokenizer)
            loss_fn = on_policy(
                loss_fn,
                start.config,
                new_tokens=answer_tokens(at.task, start.tokenizer),
                temperature=config.own_temperature,
                stop_ids=engine.stop_tokens((at.task.template.separator,)).nonzero()[0].tolist(),
                pad_id=start.tokenizer.pad_id,
                hard_weight=config.distil.hard_weight,
            )
            stream = with_own(stream, config.own, seed)
        params, patterns = start.params, student_only(start.selection).patterns
        if matched:
            with_matchers = add_matchers(config.match, start.config, first.config, params, jax.random.key(seed))
            patterns = (*((r"matcher/.*",) if len(with_matchers) > len(params) else ()), *patterns)
            params = placed(start.config, with_matchers)
        if not config.distil.cache:
            params = with_teacher(params, [teacher.params for teacher in teachers], config.distil.teacher_base)
        own = start._replace(params=params, selection=Selection(patterns), past=past)
        return own, stream, loss_fn, _flops(config, fit, teachers, start)

    return taught


def _check_across(config: TeachingConfig, at: Setting | None, teachers: int) -> None:
    asked = {
        "others": teachers > 1,
        "cache": config.distil.cache,
        "own": config.own,
        "shots": config.shots,
        "instruction": config.instruction,
        "match": config.match.hidden or config.match.attention or config.match.relations,
        "a head": at is not None and at.head,
        "text": at is None,
    }
    if named := [name for name, given in asked.items() if given]:
        raise UserError(
            f"the student's tokenizer is not its teacher's, and {named[0]} cannot be had there: leave it out, or give "
            "the student the teacher's tokenizer"
        )


def task_rows(
    config: TeachingConfig,
    fit: FitConfig,
    at: Setting,
    start: Start,
    teacher: Start,
    records: Sequence[Record],
    seed: int,
) -> list[Rows]:
    """The rows of a task's `training_records` where they are not those that tuning has; each a source of its own."""
    on_bad_row = at.config.on_bad_row
    sides = {"length": fit.length, "teacher_length": teacher.config.max_len, "on_bad_row": on_bad_row}
    if start.tokenizer.digest != teacher.tokenizer.digest:
        return [two_tokenizers_on_task(at.task, records, start.tokenizer, teacher.tokenizer, **sides)]
    if config.shots or config.instruction:
        prompt = {"shots": config.shots, "seed": seed, "instruction": config.instruction}
        return [prompt_distillation(at.task, records, start.tokenizer, **prompt, **sides)]
    if not (config.own or config.written or config.transfer_tokens or config.rationales):
        return []
    examples = completions(at.task, records, start.tokenizer)
    if config.rationales:
        field = at.task.rationale_field or RATIONALE
        examples += rationale_examples(at.task, records, start.tokenizer, field, config.rationales)
    if config.own:
        return [prompted_rows(examples, (fit.length,), answer_tokens(at.task, start.tokenizer), on_bad_row)]
    return [pack(examples, fit.length, on_bad_row)]


def check_written(config: TeachingConfig, at: Setting) -> None:
    """Raises UserError where a head answers what is of text (answers, prompts), or several processes are to write."""
    of_text = ("own", *_WRITING, "shots", "instruction")
    if at.head and (named := [f"{name}={value}" for name in of_text if (value := getattr(config, name))]):
        raise UserError(f"{named[0]} is of tasks that are answered in text: set head=False")
    written = [f"{name}={value}" for name in _WRITING if (value := getattr(config, name))]
    if written and jax.process_count() > 1:
        raise UserError(f"{written[0]}: what a teacher writes is written by one process; run without --hosts")


def training_records(config: TeachingConfig, at: Setting, teacher: Start, seed: int) -> Sequence[Record]:
    """The training records, with what the teacher is to write: answers to them, queries of its own, reasons.

    Where it is to write nothing they are the task's own.
    """
    task, records = at.task, at.task.splits["train"]
    check_written(config, at)
    engine = Engine(teacher.config, teacher.params, teacher.tokenizer)
    if config.written == 1:
        records = stage(at.rundir, "written", lambda: answered(task, engine, records))
    elif config.written:
        records = sampled(task, engine, records, at.rundir / "written.db", samples=config.written, seed=seed)
    if config.transfer_tokens:
        own = stage(at.rundir, "transfer_set", lambda: write_transfer_set(task, engine, config.transfer_tokens, seed))
        print(f"the teacher wrote {len(own)} queries of its own", file=sys.stderr)
        records = [*records, *own]
    if not records:
        raise UserError(
            f"the teacher wrote no answer that ends to any of {len(task.splits['train'])} queries: tune it for the "
            "task first"
        )
    if config.rationales and not task.rationale_field:
        reasons = written_rationales(task, engine, records, at.rundir / "rationales.db", field=RATIONALE)
        why = {record["id"]: record[RATIONALE] for record in reasons}
        print(f"the teacher gave its reason for {len(why)} of {len(records)} answers", file=sys.stderr)
        records = [{**record, RATIONALE: why.get(record["id"], "")} for record in records]
    return records


def _cached(
    config: TeachingConfig, fit: FitConfig, teacher: Start, vocab_size: int, rundir: Path, seed: int, rows: Rows
) -> Rows:
    assert config.distil.cache is not None
    found = cached_teacher(
        cache_folder(rundir) / "teachers",
        rows,
        teacher.config,
        teacher.params,
        teacher.tokenizer.digest,
        kind=config.distil.cache,
        k=config.kept,
        batch_size=fit.batch_size,
        seed=seed,
        vocab_size=None if teacher.config.labels else min(vocab_size, teacher.config.vocab_size),
    )
    print(f"the cached teacher takes {bytes_per_token(found):.0f} bytes a token", file=sys.stderr)
    return found


def _flops(config: TeachingConfig, fit: FitConfig, teachers: Sequence[Start], student: Start) -> float:
    """What a step costs beside the student's own: the teachers' forward passes, and what the student writes."""
    tokens, context = fit.batch_size * fit.length, fit.length / 2
    asked = [] if config.distil.cache else teachers
    theirs = sum(forward_flops(teacher.config, teacher.params, tokens, context) for teacher in asked)
    return theirs + config.own * forward_flops(student.config, student.params, tokens, context)
