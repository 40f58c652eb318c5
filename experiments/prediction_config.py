"""What predicting ahead of time reads from an experiment file or the command line; jax-free."""

import dataclasses
from typing import Literal, get_args

from limbeck.experiments.config import flatten
from limbeck.inference.lookup import NORMALISATIONS
from limbeck.model.errors import UserError, one_of
from limbeck.prompting.config import PromptConfig

Kind = Literal["", "generate", "score", "classify", "regress", "embed"]
Quantise = Literal["", "int8", "nf4"]
Dtype = Literal["", "float32", "bfloat16", "float16"]

# Fields of a prompt that a job does not take, and what does their work.
ELSEWHERE = {
    "prompt.seed": "say it as --seed",
    "prompt.samples": "say it as --samples",
    "prompt.temperature": "say it as --temperature",
    "prompt.max_new_tokens": "say it as --max-new-tokens",
    "prompt.view": "a store keeps the log-likelihood of each option: leave it out",
    "prompt.calibration": "a store keeps the log-likelihood of each option: leave it out",
    "prompt.vote": "a store keeps each text, and the commonest answer is told: leave it out",
}


@dataclasses.dataclass(frozen=True)
class PredictionConfig:
    """Queries, the model that answers them, how, and the store that keeps the answers."""

    model: str = ""  # file or folder
    store: str = ""  # file that keeps the predictions; empty: predictions.db in the run's folder
    task: str = ""  # as `load_task` takes it: template, options, examples, and without an input the queries
    input: str = ""  # queries: .jsonl, .csv, .parquet, tfds:NAME, or a file of the OpenAI batch format
    output: str = ""  # JSON Lines, one for each query in its order; empty: the store alone
    split: str = "test"  # of the task, or of a TFDS input
    description: str = ""  # what a task.json says, in JSON, for data that has none
    kind: Kind = ""  # empty: as the task's answers are; classify and regress ask a model's head if it has one
    options: tuple[str, ...] = ()  # to be scored or named by the head, where no task says them
    prompt: PromptConfig = PromptConfig()  # in a task; what has the same name below is said there
    samples: int = 1  # texts that are written to each query
    max_new_tokens: int | None = None  # None: as long as the task's longest answer; 64 without a task
    temperature: float | None = None  # None: 0, the likeliest text; in the batch format 1, as published
    top_k: int = 0  # 0: draw from all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0  # of the samples and of the examples
    stop: tuple[str, ...] = ()  # an answer ends before any of these, too
    adapter: str = ""  # folder in PEFT's format
    quantise: Quantise = ""  # the model's kernels in few bits
    coded_cache: bool = False  # keys and values of what is written in eight bits: more answers at once, other numbers
    dtype: Dtype = ""  # empty: as stored
    normalisation: str = ""  # what look-ups take for the same query; empty: as the store has it, nfc in a new one
    batch_size: int = 64
    chunk: int = 256  # answers of a commit
    workers: int = 1  # processes, each with its share of the queries; with ray so many engines in its cluster
    ray: str = ""  # address of a Ray cluster, or "local" for one on this machine
    mesh: tuple[str, ...] = ()  # devices that hold one model together, such as data=2 tensor=4
    hosts: bool = False  # this process is one of many of which the mesh is made: jax.distributed, by the environment

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(Kind))
        one_of("quantise", self.quantise, get_args(Quantise))
        one_of("dtype", self.dtype, get_args(Dtype))
        one_of("normalisation", self.normalisation, ("", *NORMALISATIONS))
        least = {"samples": 1, "max_new_tokens": 1, "temperature": 0, "top_k": 0, "min_p": 0, "batch_size": 1,
                 "chunk": 1, "workers": 1}  # fmt: skip
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= smallest:
                raise UserError(f"{name}={value}: at least {smallest}")
        if (self.mesh or self.hosts) and (self.workers > 1 or self.ray):
            raise UserError("with a mesh all devices answer together: leave workers and ray out")
        if self.hosts and not self.mesh:
            raise UserError("hosts: say how their devices hold the model, such as --mesh fsdp=16")
        if not 0 < self.top_p <= 1 or self.min_p > 1:
            raise UserError(f"top_p={self.top_p}, min_p={self.min_p}: above 0 and up to 1, and from 0 to 1")
        if not all(self.stop) or not all(self.options) or len(set(self.options)) < len(self.options):
            raise UserError(f"stop={list(self.stop)}, options={list(self.options)}: none empty, options each once")
        plain = flatten(PromptConfig())
        for name in ELSEWHERE:
            value = getattr(self.prompt, name.removeprefix("prompt."))
            if value != plain[name.removeprefix("prompt.")]:
                raise UserError(f"{name}={value!r}: {ELSEWHERE[name]}")
