"""What a comparison of all ways of adapting reads from an experiment file; jax-free: a mistake stops at once."""

import dataclasses
from typing import Literal

from limbeck.experiments.distillation_config import TeachingConfig, check_portions
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.errors import UserError
from limbeck.prompting.config import Calibration, PromptConfig
from limbeck.train.config import FitConfig

Proposer = Literal["", "ape", "opro"]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The search for a better prompt: what is tried on validation records, and for how much."""

    candidates: int = 16  # drawn of examples, orders, formats and instructions; 0: no search
    passes: float = 5.0  # over the validation split, that all of them may take together
    how: Literal["halving", "random"] = "halving"
    instructions: tuple[str, ...] = ()  # to try, besides the task's own
    proposer: Proposer = ""  # and those that the model writes itself


@dataclasses.dataclass(frozen=True)
class AdaptationConfig:
    """One task and one model: prompted, tuned, distilled."""

    tuning: TuningConfig  # the task, the model and how it is trained; its own way of tuning is not looked at
    shots: tuple[int, ...] = (0, 1, 4)  # examples of the prompts
    prompt: PromptConfig = PromptConfig(pick="fixed")  # what the prompts have in common
    calibration: Calibration = "contextual"  # of classifications every prompt also so; "none": only as it is
    variants: int = 5  # of each prompt, which mean the same: their spread belongs to its result; 1: none
    spread_records: int = 200  # of the test split at most, on which variants are asked
    search: SearchConfig = SearchConfig()
    ways: tuple[str, ...] = ("prompt", "lora", "full")  # of tuning; the students' teacher is the last
    students: bool = True
    student_fit: FitConfig | None = None  # how they are trained; None: as the others, which rarely is enough
    teaching: TeachingConfig = TeachingConfig()

    def __post_init__(self) -> None:
        if not self.shots or len(set(self.shots)) < len(self.shots) or min(self.shots) < 0:
            raise UserError(f"shots {list(self.shots)}: name one or more numbers of examples, each once")
        if len(set(self.ways)) < len(self.ways) or (self.students and not self.ways):
            raise UserError(f"ways {list(self.ways)}: name each once, and one at least to have a student's teacher")
        for name, least in (("variants", 1), ("spread_records", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.search.candidates < 0 or self.search.passes < 1:
            raise UserError(
                f"search: candidates={self.search.candidates}, passes={self.search.passes}: 0 or more candidates, "
                "and a pass over the validation records at least"
            )
        if self.students:
            check_portions(self.teaching, self.student_fit or self.tuning.fit)

    def prompts(self, scored: bool) -> dict[str, PromptConfig]:
        """The prompts by name; `scored` says whether options are compared, which alone can be calibrated."""
        found = {}
        for shots in self.shots:
            most = "few_shot" if shots == max(self.shots) else f"{shots}_shot"
            name = {0: "zero_shot", 1: "one_shot"}.get(shots, most)
            found[name] = dataclasses.replace(self.prompt, shots=shots)
            if scored and self.calibration != "none":
                found[f"{name}_calibrated"] = dataclasses.replace(found[name], calibration=self.calibration)
        return found
