"""Real pretrained weights, a Llama of 260 k parameters that tells stories, into students of a half and a quarter.

Data:     TinyStories, 1,000 of them; stories260K.bin and its tokenizer (karpathy/tinyllamas)
Command:  limbeck run distil_stories --root FOLDER --model FOLDER/stories260k/stories260K.bin
"""

from limbeck.distill.config import DistilConfig
from limbeck.distill.students.config import StudentConfig
from limbeck.experiments.distillation_config import TeachingConfig, TextDistillationConfig
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.train.config import FitConfig, OptimConfig

config = TextDistillationConfig(
    pretraining=PretrainingConfig(
        fit=FitConfig(
            steps=600,
            batch_size=8,
            length=512,
            optim=OptimConfig(learning_rate=2e-3, weight_decay=0.1),
            evaluate_every=200,
        ),
        texts=("tinystories",),
        model="stories260k/stories260K.bin",
        prompts=("Once upon a time",),
    ),
    teaching=TeachingConfig(
        # The teacher knows stories without empty lines between paragraphs; those of this text it does not expect.
        distil=DistilConfig(hard_weight=0.5),
        student=StudentConfig(start="pruned"),
        shares=(0.5, 0.25),
    ),
)
main = "limbeck.experiments.distillation:run_on_text"
