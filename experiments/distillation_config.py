"""What a distillation reads from an experiment file; jax-free, so that a mistake stops at once."""

import dataclasses
from typing import Literal

from limbeck.distill.config import DistilConfig
from limbeck.distill.match_config import MatchConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.errors import UserError
from limbeck.train.config import FitConfig


@dataclasses.dataclass(frozen=True)
class TeachingConfig:
    """What students learn from their teacher: how they are held against it, on which rows, and who they are."""

    distil: DistilConfig = DistilConfig()
    match: MatchConfig = MatchConfig()
    student: StudentConfig = StudentConfig()
    shares: tuple[float, ...] = ()  # of the teacher's parameters, one a student, unless `student` has a size or folder
    others: tuple[str, ...] = ()  # more teachers, whose probabilities are averaged with the first one's
    across: Literal["uld", "bytes"] = "bytes"  # how a student of another tokenizer is compared (distill/across.py)
    kept: int = 32  # entries of a token's distribution, where `distil.cache` names a cached teacher
    own: float = 0.0  # share of the steps on the student's own answers (of tasks that are answered in text)
    own_temperature: float = 1.0  # of those
    written: int = 0  # answers of the teacher's to every training query, which take the place of the right ones
    transfer_tokens: int = 0  # that the teacher writes as queries of its own, which it answers too
    rationales: float = 0.0  # weight of reasons for answers, a second target: the records', or else the teacher's
    shots: int = 0  # examples that the teacher sees before a query, and the student does not
    instruction: str = ""  # that the teacher alone reads
    control: bool = True  # the same student, trained as long without a teacher

    def __post_init__(self) -> None:
        for student in self.students().values():
            student.check_smaller()
        for name, least in (("kept", 1), ("written", 0), ("transfer_tokens", 0), ("rationales", 0), ("shots", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")
        if not 0 <= self.own <= 1:
            raise UserError(f"own={self.own}: a share of the steps, from 0 to 1")
        if self.own and self.distil.cache:
            raise UserError(f"own={self.own} asks a live teacher, and cache={self.distil.cache} is none: leave one out")
        if self.others and self.distil.cache:
            raise UserError(
                f"cache={self.distil.cache} keeps what one teacher says, and others={list(self.others)} are more: "
                "leave one out"
            )
        if self.own and (self.shots or self.instruction):
            raise UserError("a teacher with a prompt of its own (shots, instruction) cannot read the student's answers")

    def students(self) -> dict[str, StudentConfig]:
        """The students by name."""
        own = self.student
        if not self.shares or own.params is not None or own.sizes() or own.layers or own.folder:
            return {"student": own}
        return {f"student_{share:g}": dataclasses.replace(self.student, params=share) for share in self.shares}


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Students of a model that was tuned for a task."""

    tuning: TuningConfig  # the task, and how a student is trained; its `model` is the teacher
    teaching: TeachingConfig = TeachingConfig()

    def __post_init__(self) -> None:
        check_portions(self.teaching, self.tuning.fit)


@dataclasses.dataclass(frozen=True)
class TextDistillationConfig:
    """Students of a language model, on text."""

    pretraining: PretrainingConfig  # the text, and how a student is trained; its `model` is the teacher
    teaching: TeachingConfig = TeachingConfig()

    def __post_init__(self) -> None:
        teaching = self.teaching
        check_portions(teaching, self.pretraining.fit)
        for name in ("own", "written", "transfer_tokens", "rationales", "shots", "instruction"):
            if getattr(teaching, name):
                raise UserError(f"{name}={getattr(teaching, name)!r} is of tasks; on text a teacher is live or cached")


def check_portions(teaching: TeachingConfig, fit: FitConfig) -> None:
    """Raises UserError where features are matched and batches are run in portions (`make_step`'s `accumulate`).

    Features are a mean over all real tokens, and portions are put together by their targets: no sum is the batch's.
    """
    match = teaching.match
    asked = [f"{name}={weight:g}" for name in ("hidden", "attention", "relations") if (weight := getattr(match, name))]
    if asked and fit.accumulate > 1:
        raise UserError(
            f"accumulate={fit.accumulate} weighs portions of a batch by their targets, and matched features "
            f"({asked[0]}) are of all tokens: set accumulate=1, or leave the matching out"
        )
