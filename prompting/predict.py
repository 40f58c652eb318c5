"""A task's records answered by a model: classes are scored, other answers generated; zero-, one- and few-shot."""

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Generation, Sampling, ScoreRequest, Scores
from limbeck.model.errors import UserError
from limbeck.model.progress import progress
from limbeck.model.tokenizer import Tokenizer
from limbeck.prompting.demonstrations import choose
from limbeck.tasks.task import Record, Task, fields

_PORTION = 512  # records between two moves of the progress bar


@dataclass(frozen=True)
class Predictions:
    """An answer for each record, the tokens of each prompt, and how many demonstrations did not fit."""

    answers: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    dropped: int


def answer_tokens(task: Task, tokenizer: Tokenizer) -> int:
    """How many tokens an answer may take: the longest of the training split with its separator, and one more."""
    texts = {task.target(record) + task.template.separator for record in task.splits["train"]}
    return max(len(ids) for ids in tokenizer.encode_batch(sorted(texts))) + 1


def make_request(
    task: Task, tokenizer: Tokenizer, record: Record, demonstrations: Sequence[Record] = (), max_new_tokens: int = 16
) -> GenerateRequest | ScoreRequest:
    """One BOS and the prompt; the options to score, or the separator at which a generated answer ends."""
    prompt = tuple(tokenizer.prompt(task.prompt(record, demonstrations)))
    if task.kind != "classification":
        return GenerateRequest(prompt, Sampling(max_new_tokens), (task.template.separator,))
    assert task.options is not None
    targets = [task.target(record, option) + task.template.separator for option in task.options]
    return ScoreRequest(prompt, tuple(tuple(ids) for ids in tokenizer.encode_batch(targets)))


def query_text(task: Task, record: Record) -> str:
    """What a look-up asks by: the text of the query's fields."""
    return " ".join(record[name] for name in fields(task.template.query))


def read_answer(task: Task, result: Generation | Scores) -> str:
    """The answer in words: the generated text, or the likeliest option (the first of equals)."""
    if isinstance(result, Generation):
        return result.text.strip()
    assert task.options is not None
    return task.options[max(range(len(task.options)), key=lambda i: result.logprobs[i])]


def make_requests(
    task: Task, engine: Engine, records: Sequence[Record], shots: int = 0, seed: int = 0
) -> tuple[list[GenerateRequest | ScoreRequest], int]:
    """(a request for each record, how many demonstrations were left out).

    A prompt that is too long loses whole demonstrations, the first ones first. Raises UserError for a record that
    does not fit on its own.
    """
    new_tokens = answer_tokens(task, engine.tokenizer)
    requests, dropped = [], 0
    for record in records:
        shown = choose(task, record, shots, seed)
        for left_out in range(len(shown) + 1):
            request = make_request(task, engine.tokenizer, record, shown[left_out:], new_tokens)
            if fits(engine, request):
                break
        else:
            raise UserError(
                f"record {record['id']!r} has {len(request.prompt)} tokens, its answer up to {new_tokens}; the model "
                f"has {engine.config.max_len} positions: shorten the record or use a model with a larger max_len"
            )
        requests.append(request)
        dropped += left_out
    return requests, dropped


def fits(engine: Engine, request: GenerateRequest | ScoreRequest) -> bool:
    """Whether the prompt and the longest answer fit the model's positions."""
    if isinstance(request, GenerateRequest):
        longest = request.sampling.max_new_tokens
    else:
        longest = max(len(option) for option in request.options)
    return engine.prefix(request.adapter) + len(request.prompt) + longest <= engine.config.max_len


def predict(task: Task, engine: Engine, records: Sequence[Record], shots: int = 0, seed: int = 0) -> Predictions:
    """Answers every record after `shots` demonstrations from the training split, drawn anew for each record."""
    requests, dropped = make_requests(task, engine, records, shots, seed)
    answers: list[str] = []
    with progress(f"{task.name}, {shots} examples", len(records), "record") as advance:
        for start in range(0, len(requests), _PORTION):
            portion = requests[start : start + _PORTION]
            results = (
                engine.generate([r for r in portion if isinstance(r, GenerateRequest)])
                if task.kind != "classification"
                else engine.score([r for r in portion if isinstance(r, ScoreRequest)])
            )
            answers += [read_answer(task, result) for result in results]
            advance(len(portion))
    return Predictions(tuple(answers), tuple(len(request.prompt) for request in requests), dropped)
