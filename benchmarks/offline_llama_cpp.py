"""llama.cpp as a contender of `offline.py`, through xllamacpp's server in this process. Not meant to be run by hand.

It has an environment of its own, without Limbeck. Its server ends an answer at the one EOS of a tokenizer, not at a set
of tokens; so it is told how many tokens Limbeck wrote of each answer and writes as many.
"""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from contest import Json, answer_requests

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def convert(request: Json, file: Path) -> None:
    """Writes a Llama's folder as GGUF: in float32, or its matrices in Q8_0, int8 with a scale for 32 weights."""
    import gguf  # pyright: ignore[reportMissingImports]
    from safetensors.numpy import load_file

    folder = Path(request["folder"])
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = told["num_attention_heads"], told["num_key_value_heads"]
    head_dim = told.get("head_dim") or told["hidden_size"] // heads
    out = gguf.GGUFWriter(file, "llama")
    out.add_context_length(told["max_position_embeddings"])
    out.add_embedding_length(told["hidden_size"])
    out.add_block_count(told["num_hidden_layers"])
    out.add_feed_forward_length(told["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(told["rms_norm_eps"])
    out.add_rope_freq_base(told["rope_theta"])
    for add in (out.add_rope_dimension_count, out.add_key_length, out.add_value_length):
        add(head_dim)
    # Texts are token ids here and there: a vocabulary of the words "t0", "t1", ... tells what was written.
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list([f"t{index}" for index in range(told["vocab_size"])])
    out.add_token_types([gguf.TokenType.NORMAL] * told["vocab_size"])
    out.add_token_merges(["t 1"])
    for file_of_weights in sorted(folder.glob("*.safetensors")):
        for name, array in load_file(file_of_weights).items():
            stem = name.removesuffix(".weight")
            layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem)
            own = f"blk.{layer[1]}.{_NAMES[layer[2]]}.weight" if layer else f"{_NAMES[stem]}.weight"
            array = array.astype(np.float32)
            if stem.endswith(("q_proj", "k_proj")):  # it turns neighbours, where the folder has halves of a head
                count = heads if stem.endswith("q_proj") else kv_heads
                array = np.ascontiguousarray(array.reshape(count, 2, -1, array.shape[-1]).swapaxes(1, 2))
                array = array.reshape(-1, array.shape[-1])
            if request["dtype"] == "int8" and array.ndim == 2:
                kind = gguf.GGMLQuantizationType.Q8_0
                out.add_tensor(own, gguf.quants.quantize(array, kind), raw_dtype=kind)
            else:
                out.add_tensor(own, array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def start(request: Json) -> tuple[Json, Callable[[Json], Json]]:
    """Converts the model; from then on each request is a turn."""
    import xllamacpp  # pyright: ignore[reportMissingImports]

    file = Path(f"{request['converted']}-{request['dtype']}.gguf")
    convert(request, file)
    now = time.process_time if request["clock"] == "cpu" else time.perf_counter
    servers: dict[int, Any] = {}

    def serve(rows: int) -> Any:
        if rows not in servers:
            servers.clear()
            params = xllamacpp.CommonParams()
            params.model.path, params.n_parallel, params.kv_unified = str(file), rows, True
            params.n_ctx = rows * request["max_len"]
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
            params.fit_params = params.warmup = False
            if request["dtype"] == "float32":  # by default it keeps, and its fused attention computes, in half of that
                params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
                params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            servers[rows] = xllamacpp.Server(params)
        return servers[rows]

    def turn(order: Json) -> Json:
        server = serve(order["batch"])

        def write(query: list[int], tokens: int) -> list[int]:
            asked = {"prompt": order["prefix"] + query, "n_predict": tokens, "temperature": 0.0, "ignore_eos": True}
            given = server.handle_completions(asked)
            given = json.loads(given) if isinstance(given, str) else given
            if "choices" not in given:
                raise RuntimeError(str(given))
            return [int(word) for word in given["choices"][0]["text"].split("t")[1:]]

        began = now()
        with ThreadPoolExecutor(2 * order["batch"]) as pool:
            found = list(pool.map(write, order["queries"], order["written"]))
        return {"seconds": now() - began, "found": found}

    return {"versions": {"xllamacpp": version("xllamacpp")}}, turn


if __name__ == "__main__":
    answer_requests(start)
