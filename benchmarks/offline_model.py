"""The model of `offline.py`: made, converted, and its pieces measured alone. Not meant to be run by hand."""

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import Json


def limbeck_model(request: Json) -> tuple[Any, Any, Any]:
    """(config, parameters, tokenizer), the kernels in int8 where that is asked for."""
    from limbeck.model.pretrained import load_pretrained
    from limbeck.model.quantize import quantize

    config, params, tokenizer, _ = load_pretrained(request["folder"], dtype="float32")
    assert tokenizer
    tokenizer.stop_ids = tuple(request["stops"])
    return config, quantize(params, "int8") if request["dtype"] == "int8" else params, tokenizer


def measure(request: Json) -> Callable[[Json], Json]:
    """The machine's rates, and the pieces of Limbeck's work by themselves: reading a batch of queries, and a step."""
    import jax
    import jax.numpy as jnp

    from limbeck.inference.batches import bucket, padded
    from limbeck.inference.engine import Engine
    from limbeck.inference.sharing import slots
    from limbeck.model.cache import empty_cache
    from limbeck.model.decode import behind, decode_step, prefill

    engine = Engine(*limbeck_model(request), weights_digest="of no account")
    config, params = engine.config, engine.params  # as the engine has them
    read, step = jax.jit(prefill, static_argnums=0), jax.jit(decode_step, static_argnums=0, donate_argnums=3)
    now = time.process_time if request["clock"] == "cpu" else time.perf_counter

    def seconds(call: Callable[[], Any], times: int) -> list[float]:
        """Of so many calls; each is waited for."""
        found = []
        for _ in range(times):
            began = now()
            jax.block_until_ready(call())
            found.append(now() - began)
        return found

    def turn(order: Json) -> Json:
        prefix, size, T = order["prefix"], order["batch"], bucket(max(map(len, order["queries"])))
        model = behind(config, params, prefix, slots(len(prefix)))
        tokens_BT, lengths_B = padded((order["queries"] * size)[:size], T, size, 0)
        room = empty_cache(config, size, T + order["new_tokens"])
        cache = read(config, model, tokens_BT, lengths_B, room)[1]

        def write() -> jax.Array:
            nonlocal cache
            logits_BV, cache = step(config, model, tokens_BT[:, 0], cache)
            return logits_BV

        write()
        square, numbers = jnp.ones((1536, 1536)), jnp.ones(2**27)
        product, add = jax.jit(jnp.matmul), jax.jit(jnp.sum)
        jax.block_until_ready((product(square, square), add(numbers)))
        return {
            "read": statistics.median(seconds(lambda: read(config, model, tokens_BT, lengths_B, room), 3)),
            "step": statistics.median(seconds(write, 5)),
            "flops_per_second": 2 * 1536**3 / min(seconds(lambda: product(square, square), 8)),
            "bytes_per_second": numbers.nbytes / min(seconds(lambda: add(numbers), 4)),
            **_least(config, params, order),
        }  # fmt: skip

    return turn


def _least(config: Any, params: Any, order: Json) -> Json:
    """FLOPs of the tokens that nobody can leave out, for reading and for writing, and the bytes of a full step."""
    from limbeck.model.flops import forward_flops

    prefix, queries, size = len(order["prefix"]), sum(map(len, order["queries"])), order["batch"]
    written, count = sum(order["written"]), len(order["queries"])
    context = prefix + (queries + written / 2) / count
    head = 2.0 * config.vocab_size * config.width
    reading = forward_flops(config, params, prefix, prefix / 2) + forward_flops(config, params, queries, context)
    own = 2 * config.depth * config.num_kv_heads * config.head_dim * 4.0  # bytes of a token's keys and values
    weights = sum(leaf.nbytes for path, leaf in params.items() if config.tied_embedding or not path.startswith("embed"))
    return {
        "read_flops": reading - head * (prefix + queries - count),
        "step_flops": forward_flops(config, params, written - count, context),  # an answer's last token is not run
        "steps": (written - count) / size,
        "step_bytes": weights + own * (prefix + size * (context - prefix)),
    }


def prepare(request: Json) -> Json:
    """Writes the folder of a random model, if there is no model yet, and that of CTranslate2; tells about the model.

    Its kernels are twice as large as `init` makes them, but for those of queries and keys: answers would be one token
    over and over.
    """
    import jax

    from limbeck.model.pretrained import load_pretrained, save_pretrained
    from limbeck.model.sizes import sized
    from limbeck.model.transformer import init

    folder = Path(request["folder"])
    if request["size"]:
        config = sized(request["size"], request["vocab_size"], request["max_len"])
        params = init(config, jax.random.key(0))
        kernels = [path for path in params if re.fullmatch(r"blocks/(mlp/.*|attn/[vo])/kernel", path)]
        params |= {path: 2 * params[path] for path in kernels}
        save_pretrained(folder, config, params, _numbers(config.vocab_size))
    config, params, tokenizer, _ = load_pretrained(folder, dtype="float32")
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer")
    return {
        "parameters": sum(leaf.size for leaf in params.values()), "vocab_size": config.vocab_size,
        "max_len": config.max_len, "specials": sorted({*tokenizer.special_ids.values(), *tokenizer.stop_ids}),
        "start": list(tokenizer.start), "stop_ids": list(tokenizer.stop_ids),
    }  # fmt: skip


def convert(request: Json) -> Json:
    """CTranslate2's own format beside the model's folder; it makes int8 of it while it loads."""
    import ctranslate2

    ctranslate2.converters.TransformersConverter(request["folder"]).convert(request["converted"])
    return {}


def _numbers(vocab_size: int) -> Any:
    """A tokenizer of the words "3", "4", ..., each its own id."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    from limbeck.model.tokenizer import Tokenizer
    from limbeck.model.tokenizer.files import Parts, put_first

    names = ["<pad>", "<bos>", "<eos>"]
    words = {name: index for index, name in enumerate(names + [str(index) for index in range(3, vocab_size)])}
    fast = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast.add_special_tokens(names)
    put_first(fast, "<bos>")
    roles: dict[str, str] = dict(zip(("pad_token", "bos_token", "eos_token"), names, strict=True))
    return Tokenizer(Parts(fast, roles, 1, (2,), None))
