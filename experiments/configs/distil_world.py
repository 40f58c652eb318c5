"""Students of the tuned model of `make quickstart`, of 60 % down to a sixteenth of its parameters.

What the teacher knows and its training records do not say reaches a student through queries that the teacher writes.

Data:     none; the teacher is the tuned model of `make quickstart`
Command:  limbeck run distil_world
"""

from limbeck.distill.config import DistilConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.distillation_config import DistillationConfig, TeachingConfig
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.train.config import FitConfig, OptimConfig

config = DistillationConfig(
    tuning=TuningConfig(
        task="world",
        model="runs/quickstart/models/full",
        head=False,
        fit=FitConfig(
            steps=600,
            batch_size=16,
            length=64,
            optim=OptimConfig("muon", learning_rate=8e-3, weight_decay=0.1, decays=(".*",), final=0.05),
            evaluate_every=200,
        ),
    ),
    teaching=TeachingConfig(
        distil=DistilConfig(temperature=1.0),
        student=StudentConfig(start="pruned"),
        shares=(0.6, 0.25, 0.125, 0.0625),
        transfer_tokens=120_000,
    ),
)
main = "limbeck.experiments.distillation:run"
