"""Instructions that a model writes: guessed from solved examples (APE), or bettered in view of their scores (OPRO)."""

import random
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from limbeck.inference.requests import GenerateRequest, Sampling
from limbeck.model.errors import UserError, one_of
from limbeck.model.tokenizer import Tokenizer
from limbeck.model.tokenizer.chat import render
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.search import Proposals, Propose
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import fields

if TYPE_CHECKING:
    from limbeck.inference.engine import Engine

Style = Literal["ape", "opro"]
Tried = Sequence[tuple[PromptConfig, float]]

_BEST = 20  # instructions that OPRO shows
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("„", "“"), ("«", "»"), ("‘", "’"), ("「", "」"), ("`", "`"))
_LEAD = re.compile(r"^(?:new\s+)?instruction(?:\s*\d+)?\s*:\s*", re.IGNORECASE)


def proposer(
    engine: "Engine",
    task: Task,
    style: Style = "ape",
    *,
    count: int = 8,
    examples: int = 5,
    seed: int = 0,
    max_new_tokens: int = 48,
) -> Propose:
    """What a search asks for instructions: `count` drafts at a time, less those that are empty or known.

    "ape" shows `examples` solved records of train and asks which instruction was followed (Zhou et al. 2022, arXiv
    2211.01910); other records each time. "opro" shows the best instructions so far as well, from the worst to the
    best, and asks for a better one (Yang et al. 2023, arXiv 2309.03409). A model with a chat template is asked in
    a conversation. What does not fit the model is left out: the worst instructions, then examples. The same tries and
    seed give the same proposals. Raises UserError where not even one example fits.
    """
    one_of("style", style, get_args(Style))
    if count < 1 or examples < 1 or max_new_tokens < 1:
        raise UserError(f"count={count}, examples={examples}, max_new_tokens={max_new_tokens}: at least 1 of each")
    room = engine.config.max_len - engine.prefix() - max_new_tokens
    sampling = Sampling(max_new_tokens, temperature=1.0, seed=seed)

    # In a conversation the first line may be a greeting, or empty.
    stop = ("\n",) if engine.tokenizer.chat_template is None else ()

    def propose(tried: Tried) -> Proposals:
        train = task.splits["train"]
        shown = random.Random(f"{seed}/{len(tried)}").sample(train, min(examples, len(train)))
        ids = _fitting(engine.tokenizer, _texts(task, style, shown, tried), room)
        before = engine.tokens_run
        drafts = engine.generate([GenerateRequest(ids, sampling, stop, sample) for sample in range(count)])
        whole = [draft.text for draft in drafts if draft.stopped or "\n" in draft.text.strip()]
        known = [instruction_of(task, config) for config, _ in tried]
        barred = {task.template.separator, *(config.separator for config, _ in tried if config.separator)}
        texts = distinct(whole, known, barred | engine.tokenizer.special_ids.keys())
        return Proposals(tuple(texts), engine.tokens_run - before)

    return propose


def instruction_of(task: Task, config: PromptConfig) -> str:
    """The instruction that stands in a prompt; "" for none."""
    return task.template.instruction if config.instruction is None else config.instruction


def distinct(drafts: Iterable[str], known: Iterable[str], barred: Collection[str]) -> list[str]:
    """The drafts as instructions (`cleaned`), in their order, less the empty, the known and the repeated ones.

    Texts that differ in case, white space or their form in Unicode alone are the same.
    """
    seen = {_key(text) for text in known}
    kept = []
    for text in (cleaned(draft, barred) for draft in drafts):
        if text and _key(text) not in seen:
            seen.add(_key(text))
            kept.append(text)
    return kept


def cleaned(draft: str, barred: Collection[str]) -> str:
    """A draft's first line that is no heading, without quotes around it or "Instruction:" before it; "" if none can be.

    None can be that has no letter, has a character that was cut in two, or has a string of `barred` in it, such as the
    separator, which would look like the instruction's end. Braces stay: an instruction is no template.
    """
    lines = [" ".join(line.split()) for line in draft.splitlines()]
    text = next((line for line in (_LEAD.sub("", line) for line in lines) if line and not line.endswith(":")), "")
    for first, last in _QUOTES:
        if len(text) > 1 and text[0] == first and text[-1] == last and last not in text[1:-1]:
            text = text[1:-1].strip()
            break
    legal = "\ufffd" not in text and not any(string.strip() and string in text for string in barred)
    return text if legal and any(map(str.isalpha, text)) else ""


def ape_text(task: Task, records: Sequence[Record]) -> str:
    """Asks which instruction leads from these records' inputs to their answers."""
    return (
        "Somebody was given one instruction, and wrote an output for every input as it says.\n\n"
        f"{_solved(task, records)}\n\n"
        "The instruction fits on one line. It was this.\nInstruction:"
    )


def opro_text(task: Task, records: Sequence[Record], scored: Sequence[tuple[str, float]]) -> str:
    """Asks for an instruction that is better than those scored, which are shown from the worst to the best."""
    ascending = sorted(scored, key=lambda pair: pair[1])
    tried = "\n\n".join(f"Instruction: {' '.join(text.split())}\nScore: {score:.3g}" for text, score in ascending)
    before = f"These instructions were tried. The higher its score, the better an instruction is.\n\n{tried}\n\n"
    unlike = ", unlike all above, that has a higher score" if scored else ""
    return (
        f"{before if scored else ''}"
        f"The instruction is for inputs such as these, whose right outputs are shown.\n\n{_solved(task, records)}\n\n"
        f"One instruction{unlike}, on one line:\nInstruction:"
    )


def _texts(task: Task, style: Style, records: Sequence[Record], tried: Tried) -> Iterator[str]:
    """The whole question, then shorter and shorter ones."""
    scores: dict[str, float] = {}
    for config, score in tried:
        if text := instruction_of(task, config):
            scores[text] = max(score, scores.get(text, score))
    best = sorted(scores.items(), key=lambda pair: -pair[1])[:_BEST] if style == "opro" else []
    for count in range(len(best), 0, -1):
        yield opro_text(task, records, best[:count])
    for count in range(len(records), 0, -1):
        yield opro_text(task, records[:count], ()) if style == "opro" else ape_text(task, records[:count])


def _solved(task: Task, records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(fields(task.template.query)))

    def asked(record: Record) -> str:
        return record[names[0]] if len(names) == 1 else "\n".join(f"{name}: {record[name]}" for name in names)

    return "\n\n".join(f"Input: {asked(record)}\nOutput: {task.answer(record)}" for record in records)


def _fitting(tokenizer: Tokenizer, texts: Iterable[str], room: int) -> tuple[int, ...]:
    """The ids of the first text that the model has room for; the last is the shortest."""
    ids = []
    for text in texts:
        ids = _asked(tokenizer, text)
        if len(ids) <= room:
            return tuple(ids)
    raise UserError(
        f"to ask for an instruction takes {len(ids)} tokens, and the model has room for {max(room, 0)}: take a model"
        " with a larger max_len, or write the instructions yourself"
    )


def _asked(tokenizer: Tokenizer, text: str) -> list[int]:
    if tokenizer.chat_template is None:
        return tokenizer.prompt(text)
    return render(tokenizer, [{"role": "user", "content": text}])


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())
