"""One contender of a benchmark: a whole training step in Limbeck, PyTorch or Tunix, or a bare product of matrices.

Started by `step.py` and `tuning.py`, and for `distilling.py` by `distilling_contenders.py`, as a process of its own,
with the interpreter that has the library; not meant to be run by hand. All do the same: AdamW on every parameter (or on
what a way of tuning trains), gradients clipped to a global norm of 1, one batch of random tokens, the mean loss over
all next tokens, weights from one folder. A `Step` enqueues and gives its loss; a `Finish` waits.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from contest import Json, answer_requests, forget_peak, memory

RATE, B1, B2, EPS, DECAY, CLIP = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0  # AdamW, the same for all


class Ready(NamedTuple):
    """A step that can be called again and again."""

    step: Callable[[], Any]
    finish: Callable[[Any], float]  # waits for a step's loss and gives it
    device_peak: Callable[[], float | None]  # MiB on an accelerator, None on CPU
    parameters: int  # that train
    versions: dict[str, str]
    targets: Callable[[], int] | None = None  # over how many tokens the last step's loss was, where that may vary


def tokens_BT(request: Json) -> np.ndarray:
    """The one batch, the same for every contender."""
    rng = np.random.default_rng(0)
    return rng.integers(3, request["vocab_size"], (request["rows"], request["length"])).astype(np.int32)


def _jax_peak() -> float | None:
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**20 if stats and "peak_bytes_in_use" in stats else None


def limbeck_adamw() -> Any:
    """Limbeck's settings of the one optimiser."""
    from limbeck.train.config import OptimConfig

    return OptimConfig(
        learning_rate=RATE, schedule="constant", warmup=0.0, weight_decay=DECAY, decays=(".*",), clip=CLIP,
        b1=B1, b2=B2, eps=EPS,
    )  # fmt: skip


def limbeck_trainer(request: Json, **changes: Any) -> tuple[Any, Any]:
    """(trainer, batch) on what `load_pretrained` gives; a request's `tuning` is how (full), `method` its settings."""
    import dataclasses

    from limbeck_step import Trainer, next_token_batch

    from limbeck.model.pretrained import load_pretrained
    from limbeck.train.config import MethodConfig
    from limbeck.train.loss import token_loss
    from limbeck.train.methods import Ground, prepare
    from limbeck.train.select import apply_selection

    config, params = load_pretrained(request["folder"], dtype=request["dtype"])[:2]
    config = dataclasses.replace(config, **changes)
    batch = next_token_batch(tokens_BT(request))
    ground = Ground(
        config, params, MethodConfig(**request.get("method", {})), examples=lambda rows: (token_loss(config), [batch])
    )
    prepared = prepare(request.get("tuning", "full"), ground, limbeck_adamw())
    trainable, frozen = apply_selection(prepared.selection, prepared.params)
    return Trainer(config, trainable, optim=prepared.optim, frozen=frozen), batch


def limbeck(request: Json, **changes: Any) -> Ready:
    """Limbeck's own step."""
    import jax

    trainer, batch = limbeck_trainer(request, **changes)
    count = sum(leaf.size for leaf in trainer.state.trainable.values())
    return Ready(lambda: trainer.step(batch), trainer.finish, _jax_peak, count, {"jax": jax.__version__})


def torch(request: Json, compiled: bool = False) -> Ready:
    """transformers' Llama with PyTorch's own attention and its fused AdamW; compiled with the defaults, or eager.

    In bfloat16 as transformers' Trainer does it: float32 parameters, products in bfloat16. With a `tuning`, only what
    that trains; with `remat`, layers are computed again in the backward pass.
    """
    import torch
    import transformers

    on_gpu = request["device"] == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = transformers.LlamaForCausalLM.from_pretrained(
        request["folder"], dtype=torch.float32, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if request.get("remat", "none") != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rate, (kind, settings) = RATE, request.get("peft") or ("", {})
    if request.get("tuning") == "last_blocks":
        model.requires_grad_(False)
        for part in (model.model.layers[-1], model.model.norm):
            part.requires_grad_(True)
    elif kind:
        import peft

        model = peft.get_peft_model(model, getattr(peft, kind)(**settings))  # pyright: ignore[reportArgumentType]
        rate, versions["peft"] = 10 * RATE, peft.__version__
    model.to(device).train()  # pyright: ignore[reportArgumentType]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, rate, (B1, B2), EPS, DECAY, fused=True)
    tokens = torch.from_numpy(tokens_BT(request)).long().to(device)
    forward = torch.compile(model) if compiled else model

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=request["dtype"] == "bfloat16"):
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, CLIP)
        optimizer.step()
        return loss.detach()

    def device_peak() -> float | None:
        return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None

    count = sum(parameter.numel() for parameter in trainable)
    return Ready(step, lambda loss: float(loss.item()), device_peak, count, versions)


def tunix_llama(request: Json) -> tuple[Any, Any]:
    """Tunix's Llama 3 with the weights of a request's folder, and the mesh of one device that it lies on."""
    import jax
    import jax.numpy as jnp
    from tunix.models.llama3.model import ModelConfig  # pyright: ignore
    from tunix.models.llama3.params import create_model_from_safe_tensors  # pyright: ignore

    config = ModelConfig(
        num_layers=request["depth"],
        vocab_size=request["vocab_size"],
        embed_dim=request["width"],
        hidden_dim=request["mlp_dim"],
        num_heads=request["num_heads"],
        head_dim=request["head_dim"],
        num_kv_heads=request["num_kv_heads"],
        rope_theta=int(request["rope_theta"]),
        norm_eps=request["norm_eps"],
        weight_tying=True,
    )
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    return create_model_from_safe_tensors(request["folder"], config, mesh, jnp.dtype(request["dtype"])), mesh


def tunix_adamw() -> Any:
    """The one optimiser, as Tunix's trainers take it."""
    import optax

    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, B1, B2, EPS, weight_decay=DECAY))


def tunix_ready(request: Json, trainer: Any, mesh: Any) -> Ready:
    """The jitted step of a Tunix trainer, as its `train` builds it, without that loop's bookkeeping."""
    from importlib.metadata import version

    import jax
    import jax.numpy as jnp
    from flax import nnx
    from tunix.sft.peft_trainer import TrainingInput  # pyright: ignore
    from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask  # pyright: ignore

    def inputs(example: TrainingInput) -> Json:
        mask = jnp.asarray(example.input_mask)
        return {
            "input_tokens": example.input_tokens,
            "input_mask": mask,
            "positions": build_positions_from_mask(mask),
            "attention_mask": make_causal_attn_mask(mask),
        }

    trainer.with_gen_model_input_fn(inputs)
    with mesh:
        train, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    tokens = jnp.asarray(tokens_BT(request))
    example = TrainingInput(input_tokens=tokens, input_mask=jnp.ones(tokens.shape, bool))

    def step() -> jax.Array:
        with mesh:  # a trainer that distils asks the teacher before its step, in `_prepare_inputs`
            return train(trainer._prepare_inputs(example))[0]

    def finish(loss: jax.Array) -> float:
        jax.block_until_ready((loss, nnx.state(trainer.model)))
        return float(loss)

    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(trainer.model, nnx.Param)))
    return Ready(step, finish, _jax_peak, count, {"jax": jax.__version__, "tunix": version("google-tunix")})


def tunix(request: Json) -> Ready:
    """Tunix's Llama 3 and the step of its trainer.

    In bfloat16 as in its examples: parameters and the optimiser's state too, which is half of what the others hold.
    """
    from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig  # pyright: ignore

    model, mesh = tunix_llama(request)
    trainer = PeftTrainer(model, tunix_adamw(), TrainingConfig(eval_every_n_steps=10**9))
    return tunix_ready(request, trainer, mesh)


def matmul(request: Json) -> Ready:
    """The machine's measure: one product of square matrices in XLA; its "loss" means nothing."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (request["matmul"],) * 2, jnp.dtype(request["dtype"]))
    product = jax.jit(jnp.matmul)

    def finish(out: jax.Array) -> float:
        out.block_until_ready()
        return 0.0

    return Ready(lambda: product(a, a), finish, _jax_peak, 0, {"jax": jax.__version__})


Build = Callable[[Json], Ready]
CONTENDERS: dict[str, Build] = {
    "limbeck": lambda request: limbeck(request, scan=request["depth"] > 8),  # as `limbeck run` has it
    "limbeck-scan": limbeck,
    "limbeck-remat": lambda request: limbeck(request, remat="full"),
    "limbeck-tuned": lambda request: limbeck(request, remat=request["remat"]),
    "torch": torch,
    "torch-compile": lambda request: torch(request, compiled=True),
    "tunix": tunix,
    "matmul": matmul,
}


def prepare(request: Json) -> Json:
    """Writes the folder of random weights, by `seed`, that contenders load; gives the counted FLOPs of a step."""
    import jax

    from limbeck.model.config import ModelConfig
    from limbeck.model.flops import step_flops
    from limbeck.model.pretrained import save_pretrained
    from limbeck.model.rope import Rope
    from limbeck.model.transformer import init

    fields = ("vocab_size", "width", "depth", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "max_len", "norm_eps")
    config = ModelConfig(**{name: request[name] for name in fields}, rope=Rope(theta=request["rope_theta"]))
    params = init(config, jax.random.key(request.get("seed", 0)))
    flops = step_flops(config, params, {}, request["rows"] * request["length"], request["length"] / 2)
    cast = {path: leaf.astype(request["dtype"]) for path, leaf in params.items()}
    save_pretrained(Path(request["folder"]), config, cast)
    return {"flops": flops, "parameters": sum(leaf.size for leaf in params.values())}


def start(request: Json, contenders: dict[str, Build] = CONTENDERS) -> tuple[Json, Callable[[Json], Json]]:
    """Builds the contender that a request names; from then on each request is so many steps, or one more folder."""
    if request["contender"] == "prepare":
        return prepare(request), prepare
    ready: Ready | None = contenders[request["contender"]](request)
    about = {"parameters": ready.parameters, "versions": ready.versions}
    forget_peak()
    about["resident"] = memory()[0]

    def run(order: Json) -> Json:
        nonlocal ready
        if order.get("leave"):  # what the process holds without model, optimiser and batch
            ready = None
            forget_peak()
            return {"resident": memory()[0]}
        assert ready
        if order.get("forget_peak"):
            forget_peak()
        step, finish = ready.step, ready.finish
        began = time.perf_counter()
        losses = [step() for _ in range(order["steps"])]
        last = finish(losses[-1])
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "losses": [finish(loss) for loss in losses[:-1]] + [last] if order.get("losses") else [],
            "targets": ready.targets() if ready.targets and order.get("losses") else None,
            "peak": memory()[1],
            "device_peak": ready.device_peak(),
        }

    return about, run


if __name__ == "__main__":
    answer_requests(start)
