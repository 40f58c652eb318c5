"""One contender of `distilling.py`: a way to learn from a teacher, in Limbeck, TRL or Tunix. Not run by hand.

A process of its own, with the interpreter that has the library. All start from the folders of the same student and
teacher, take the tokens of `contenders.tokens_BT`, and step with the same AdamW. The loss is the forward KL at
temperature 1, in a plain step the cross-entropy; a mean over the targets, which are all tokens but a row's first, and
on own answers those that the student wrote. Nothing stops an answer early, nothing is computed twice to save memory.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from contenders import (
    B1,
    B2,
    CLIP,
    DECAY,
    EPS,
    RATE,
    Build,
    Ready,
    limbeck_adamw,
    start,
    tokens_BT,
    tunix,
    tunix_adamw,
    tunix_llama,
    tunix_ready,
)
from contenders import torch as transformers_step
from contest import Json, answer_requests


def limbeck(request: Json) -> Ready:
    """Limbeck's one step with the loss of a way; models are unrolled as `limbeck run` has them."""
    import dataclasses

    import jax
    from limbeck_step import Trainer, next_token_batch

    from limbeck.distill.config import DistilConfig
    from limbeck.distill.rows.on_policy import on_policy
    from limbeck.distill.teacher import distillation_loss, with_teacher
    from limbeck.model.pretrained import load_pretrained
    from limbeck.model.sizes import UNROLLED
    from limbeck.train.loss import token_loss

    loaded = [load_pretrained(each["folder"], dtype=each["dtype"])[:2] for each in (request, request["teacher"])]
    (student, params), (teacher, theirs) = (
        (dataclasses.replace(config, scan=config.depth > UNROLLED), leaves) for config, leaves in loaded
    )
    batch, frozen, way = dict(next_token_batch(tokens_BT(request))), {}, request["way"]
    prompt = request["length"] // 2
    if way == "plain":
        loss_fn = token_loss(student)
    elif cache := CACHES.get(way):
        loss_fn = distillation_loss(student, None, DistilConfig(cache=cache))
        batch |= _cached(request)
    else:
        loss_fn, frozen = distillation_loss(student, teacher), with_teacher({}, theirs)
        if way == "own answers":
            sampling = {"temperature": 1.0, "stop_ids": (), "pad_id": 0, "hard_weight": 0.0}
            loss_fn = on_policy(loss_fn, student, new_tokens=request["length"] - prompt, **sampling)
            rows = request["rows"]
            batch |= {"prompt_B": np.full(rows, prompt, np.int32), "own_B": np.ones(rows, np.float32)}
    trainer = Trainer(student, params, loss_fn, limbeck_adamw(), frozen)
    metrics: dict[str, jax.Array] = {}

    def step() -> jax.Array:
        trainer.state, found = trainer.train(trainer.state, trainer.frozen, batch, trainer.key)
        metrics.update(found)
        return found["loss"]

    count = sum(leaf.size for leaf in trainer.state.trainable.values())
    versions = {"jax": jax.__version__}
    return Ready(step, trainer.finish, lambda: None, count, versions, lambda: round(float(metrics["weight"])))


CACHES: dict[str, Any] = {
    "cached, likeliest": "topk",
    "cached, with the rest": "topk_tail",
    "cached, drawn": "sampled",
}


def _cached(request: Json) -> dict[str, np.ndarray]:
    """Entries of a cached teacher: drawn at random, for what they are costs nothing."""
    rng = np.random.default_rng(0)
    shape_BTK = (request["rows"], request["length"], request["kept"])
    likely_BTK = np.sort(rng.dirichlet(np.ones(request["kept"]), shape_BTK[:2]).astype(np.float32) * 0.9)[..., ::-1]
    order_BTV = np.argsort(rng.random((*shape_BTK[:2], request["vocab_size"]), np.float32))
    return {
        "teacher_ids_BTK": order_BTV[..., : request["kept"]].astype(np.int32),
        "teacher_logprobs_BTK": np.log(np.maximum(likely_BTK, 1e-6)),
    }


def trl(request: Json) -> Ready:
    """A step of one of TRL's trainers: `training_step`, clip and update as its loop takes them, without its logging.

    Eager, as it is by default; on what the trainer's collator would give it.
    """
    import torch
    import transformers
    from trl import __version__ as version  # pyright: ignore

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    trainer, batch = _trl_trainer(request)
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1  # which its loop says
    seen = batch

    def step() -> torch.Tensor:
        nonlocal seen
        seen = batch.copy()  # in which own answers take the place of the rows
        loss = trainer.training_step(model, seen, trainer._get_num_items_in_batch([seen], trainer.args.device))
        trainer.accelerator.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        model.zero_grad()
        return loss

    def targets() -> int:
        if isinstance(seen, dict):
            return int((seen["labels"] != -100).sum())
        return int(trainer._buffered_inputs[0]["completion_mask"].sum())

    count = sum(parameter.numel() for parameter in model.parameters())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": version}
    return Ready(step, lambda loss: float(loss.item()), lambda: None, count, versions, targets)


def _trl_trainer(request: Json) -> tuple[Any, Any]:
    """(the trainer that a request names, its batch); no gradient checkpointing and no bfloat16, which it defaults to.

    The DistillationTrainer's batch is texts, for it knows no answers but the student's.
    """
    import torch
    import transformers
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer  # pyright: ignore
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # pyright: ignore

    student, tokens = _torch_llama(request["folder"]), tokens_BT(request)
    prompt = request["length"] // 2
    new = request["length"] - prompt
    settings: Json = {
        "output_dir": str(Path(request["folder"]) / "trl"), "report_to": "none", "use_cpu": True, "bf16": False,
        "per_device_train_batch_size": request["rows"], "gradient_checkpointing": False, "max_grad_norm": CLIP,
    }  # fmt: skip
    given: Json = {
        "model": student,
        "processing_class": _numbers(request["vocab_size"]),
        "optimizers": (torch.optim.AdamW(student.parameters(), RATE, (B1, B2), EPS, DECAY, fused=True), None),
    }
    if request["trainer"] == "DistillationTrainer":
        texts = [{"prompt": " ".join(map(str, row[:prompt]))} for row in tokens.tolist()]
        args = DistillationConfig(**settings, beta=0.0, max_completion_length=new)
        given["train_dataset"] = Dataset.from_list(texts)
        return DistillationTrainer(teacher_model=_torch_llama(request["teacher"]["folder"]), args=args, **given), texts
    ids = torch.from_numpy(tokens).long()
    own = request["way"] == "own answers"
    labels = ids.clone()
    labels[:, : prompt if own else 1] = -100  # the first token is nobody's target
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    given["train_dataset"] = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    given["data_collator"] = transformers.default_data_collator
    if request["trainer"] == "SFTTrainer":
        return SFTTrainer(args=SFTConfig(**settings, dataset_kwargs={"skip_prepare_dataset": True}), **given), batch
    batch |= {"prompts": ids[:, :prompt], "prompt_attention_mask": torch.ones_like(ids[:, :prompt])}
    args = GKDConfig(**settings, lmbda=float(own), beta=0.0, temperature=1.0, max_new_tokens=new)
    return GKDTrainer(teacher_model=_torch_llama(request["teacher"]["folder"]), args=args, **given), batch


def _torch_llama(folder: str) -> Any:
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    assert model.generation_config
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model


def _numbers(vocab_size: int) -> Any:
    """A tokenizer of the words "0", "1", ...; its end and padding are a token that no model has, so none writes it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    rule = Tokenizer(models.WordLevel({str(number): number for number in range(vocab_size + 1)}, unk_token="0"))
    rule.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    end = str(vocab_size)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=rule, eos_token=end, pad_token=end)


def tunix_way(request: Json) -> Ready:
    """Tunix's trainer, plain or with its distillation of logits; the teacher reads along outside of the jitted step.

    Its loss is a mean over all logits that it is given, so the forward functions leave out a row's last ones.
    """
    if request["way"] == "plain":
        return tunix(request)
    import jax
    from tunix.distillation import DistillationTrainer, TrainingConfig  # pyright: ignore
    from tunix.distillation.strategies import LogitStrategy  # pyright: ignore

    def logits(model: Any, input_tokens: Any, input_mask: Any, positions: Any, attention_mask: Any) -> jax.Array:
        return model(input_tokens, positions, None, attention_mask)[0][:, :-1]

    def labels(input_tokens: Any, **_: Any) -> jax.Array:
        return jax.nn.one_hot(input_tokens[:, 1:], request["vocab_size"])

    student, mesh = tunix_llama(request)
    teacher, _ = tunix_llama(request | request["teacher"])
    strategy = LogitStrategy(logits, logits, labels, temperature=1.0, alpha=1.0)
    config = TrainingConfig(eval_every_n_steps=10**9)
    return tunix_ready(request, DistillationTrainer(student, teacher, strategy, tunix_adamw(), config), mesh)


CONTENDERS: dict[str, Build] = {
    "limbeck": limbeck,
    "transformers": transformers_step,
    "trl": trl,
    "tunix": tunix_way,
}


if __name__ == "__main__":
    answer_requests(lambda request: start(request, CONTENDERS))
