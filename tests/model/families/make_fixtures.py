"""Makes tiny random models with transformers and PyTorch, and writes down what they compute. Needs the [bench] extra.

    python tests/model/families/make_fixtures.py [--only NAME] [--out DIR]

A variant becomes a folder `fixtures/NAME`: the model as transformers saves it, for some `config_published.json` (the
spelling of checkpoints before transformers 5), and `expected.safetensors`, float32 on CPU:

    tokens_BT mask_BT             a right-padded batch; labels_B for classification and regression
    logits_BTV hidden_BTD         at the real positions, hidden states after the final norm; zero elsewhere
    left_logits_BTV               of the batch padded on the left instead, with each row's positions counted from 0
    scores_BC                     classification: the scores of each row's last token, as transformers pools them
    losses                        mean cross-entropy of real next tokens (or of the labels, or the squared error),
                                  before the first and after each of three AdamW steps
    grad/NAME                     the gradient of every parameter before the first step, under the name in the file
    prompt_BT greedy_BT           prompts and what cached greedy decoding writes after them
    short_*  long_*               longrope: a batch that the short factors serve; a prompt that starts past them
"""

import argparse
import copy
import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch  # type: ignore[reportMissingImports]
import transformers  # type: ignore[reportMissingImports]
from old_spelling import published
from safetensors.torch import load_file, save_file
from torch.nn import functional  # type: ignore[reportMissingImports]
from variants import VARIANTS, Shape, Variant

FIXTURES = Path(__file__).parent / "fixtures"
NEW_TOKENS = 64
Model = Any
Expected = dict[str, torch.Tensor]


def make(name: str, seed: int, folder: Path, shape: Shape | None = None) -> None:
    """Writes the variant's model and expectations, for the first seed from `seed` on where rounding decides nothing.

    Greedy decoding must be decisive, weights a millionth off must do little to the logits, and training must not start
    from a gradient so near to zero that rounding turns it round: Adam's first step is as long for it as for any other.
    """
    variant, shape = VARIANTS[name], shape or Shape()
    for attempt in range(seed, seed + 200):
        torch.manual_seed(zlib.crc32(f"{name} {attempt}".encode()))
        model = _random_model(variant, shape)
        expected = _expectations(variant, shape, model)
        if expected is not None:
            break
    else:
        raise RuntimeError(f"{name}: no seed in {seed}..{seed + 199} is well-conditioned")
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    _rename_gradients(expected, set(load_file(folder / "model.safetensors")))
    save_file({key: value.detach().contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    if variant.published:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(published(config), indent=2)
        (folder / "config_published.json").write_text(text + "\n", encoding="utf-8")
    _check_quality(variant, folder)
    _check_reload(variant, folder)


def _random_model(variant: Variant, shape: Shape) -> Model:
    cls = getattr(transformers, variant.architecture)
    config = cls.config_class(**variant.config(shape), attn_implementation="eager", dtype=torch.float32)
    model = cls(config).eval()
    gemma, blocks_normed_twice = "Gemma" in variant.architecture, config.model_type in ("gemma2", "gemma3_text")
    spread = 0.3 * (72 / (shape.width * shape.depth)) ** 0.5  # 0.3 in the fixtures; larger models must not be wilder
    with torch.no_grad():
        for path, leaf in model.named_parameters():
            if _is_norm_scale(path):
                leaf.uniform_(0.5, 1.6).sub_(1.0 if gemma else 0.0)  # Gemma multiplies by 1 + weight
                if blocks_normed_twice and ("post_" in path or path == "model.norm.weight"):
                    leaf.add_(1.0)  # or the scaled embedding outweighs the blocks, and each token repeats itself
            elif blocks_normed_twice and "embed" in path:
                leaf.normal_(0.0, 0.15)
            else:
                leaf.normal_(0.0, spread)
    return model


def _is_norm_scale(path: str) -> bool:
    return path.endswith("weight") and ("norm" in path or ".ln_" in path)


def _expectations(variant: Variant, shape: Shape, model: Model) -> Expected | None:
    """Everything that is compared, or None when rounding could change some of it."""
    longest = shape.length if variant.original is None else variant.original + 8
    expected: Expected = {}
    if variant.problem is None:
        for prefix, length in _prompts(variant):
            found = _greedy(model, shape, length, variant.original if prefix == "short_" else None)
            if found is None:
                return None
            expected[f"{prefix}prompt_BT"], expected[f"{prefix}greedy_BT"] = found
    if variant.original is None:
        lengths = [longest, longest * 2 // 3, shape.window + 1]
    else:
        # All rows are past the switch, so that it is the same by row and by batch.
        lengths = [longest, longest - 3, longest - 6]
        tokens_BT, mask_BT = _batch(shape, [variant.original, variant.original // 2])
        expected |= {"short_tokens_BT": tokens_BT, "short_mask_BT": mask_BT}
        expected["short_logits_BTV"] = _forward(model, tokens_BT, mask_BT)[0] * mask_BT[..., None]
    tokens_BT, mask_BT = _batch(shape, lengths)
    expected |= {"tokens_BT": tokens_BT, "mask_BT": mask_BT}
    if variant.problem is not None:
        expected["labels_B"] = 0.5 * torch.randn(3) if variant.problem == "regression" else torch.tensor([2, 0, 1])
        expected["scores_BC"] = model(input_ids=tokens_BT, attention_mask=mask_BT).logits
    logits_BTV, hidden_BTD = _forward(model, tokens_BT, mask_BT)
    if any(_moved_by_noise(model, logits_BTV, tokens_BT, mask_BT) > 2e-4 for _ in range(3)):
        return None
    expected |= {"logits_BTV": logits_BTV * mask_BT[..., None], "hidden_BTD": hidden_BTD * mask_BT[..., None]}
    tokens_BT, mask_BT = _on_the_left(tokens_BT, mask_BT), _on_the_left(mask_BT, mask_BT)
    expected["left_logits_BTV"] = _forward(model, tokens_BT, mask_BT)[0] * mask_BT[..., None]
    expected |= _training(variant, model, expected)
    for _ in range(6):
        losses = _training(variant, model, expected, noise=2e-6)["losses"]
        if (losses - expected["losses"]).abs().max() > 3e-6:
            return None
    return expected


@torch.no_grad()
def _moved_by_noise(
    model: Model, logits_BTV: torch.Tensor, tokens_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """The largest change of a logit when every weight changes by about a millionth."""
    noisy = copy.deepcopy(model)
    for leaf in noisy.parameters():
        leaf.mul_(1 + 1e-6 * torch.randn_like(leaf))
    return ((_forward(noisy, tokens_BT, mask_BT)[0] - logits_BTV) * mask_BT[..., None]).abs().max()


def _prompts(variant: Variant) -> list[tuple[str, int]]:
    """(prefix of the key, prompt's length): one prompt, or for longrope one on each side of the switch."""
    return [("", 5)] if variant.original is None else [("short_", 6), ("long_", variant.original + 4)]


def _batch(shape: Shape, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(3, shape.vocab, mask_BT.shape) * mask_BT, mask_BT


def _on_the_left(x_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return torch.stack([row.roll(int((1 - mask).sum())) for row, mask in zip(x_BT, mask_BT, strict=True)])


def _forward(model: Model, tokens_BT: torch.Tensor, mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits or scores at every position, hidden_BTD); positions count from each row's first real token."""
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    base = model.base_model(input_ids=tokens_BT, attention_mask=mask_BT, position_ids=positions_BT)
    hidden_BTD = base.last_hidden_state
    if hasattr(model, "score"):
        return model.score(hidden_BTD), hidden_BTD
    out = model(
        input_ids=tokens_BT,
        attention_mask=mask_BT,
        position_ids=positions_BT,
        output_hidden_states=True,
        use_cache=False,
    )
    torch.testing.assert_close(out.hidden_states[-1], hidden_BTD, rtol=0, atol=1e-5)
    return out.logits, hidden_BTD


def _loss(variant: Variant, model: Model, batch: Expected) -> torch.Tensor:
    tokens_BT, mask_BT = batch["tokens_BT"], batch["mask_BT"]
    if variant.problem is not None:
        return model(input_ids=tokens_BT, attention_mask=mask_BT, labels=batch["labels_B"]).loss
    logits_BTV = _forward(model, tokens_BT, mask_BT)[0][:, :-1]
    real_BT = mask_BT[:, 1:].bool()
    return functional.cross_entropy(logits_BTV[real_BT], tokens_BT[:, 1:][real_BT])


def _training(variant: Variant, model: Model, batch: Expected, noise: float = 0.0) -> Expected:
    """The first gradients and the losses around three AdamW steps; the model is left as it was.

    `noise` is added to every gradient, relative to the largest entry of its tensor.
    """
    start = {path: leaf.detach().clone() for path, leaf in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses, out = [], {}
    for step in range(4):
        optimizer.zero_grad()
        loss = _loss(variant, model, batch)
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            out = {f"grad/{path}": leaf.grad.clone() for path, leaf in model.named_parameters()}
        for leaf in model.parameters():
            leaf.grad += noise * leaf.grad.abs().max() * torch.randn_like(leaf)
        optimizer.step()
    with torch.no_grad():
        for path, leaf in model.named_parameters():
            leaf.copy_(start[path])
    model.zero_grad()
    return out | {"losses": torch.stack(losses)}


def _greedy(model: Model, shape: Shape, length: int, room: int | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(prompts, continuations up to `room` positions), or None when a runner-up came within 1e-3 of a choice."""
    prompt_BT = torch.randint(3, shape.vocab, (2, length))
    count = NEW_TOKENS if room is None else min(NEW_TOKENS, room - length)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # or the model's end token stops it
    out = model.generate(
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=count, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
        ),
    )
    best_TB2 = torch.stack(out.logits).topk(2).values
    greedy_BT = out.sequences[:, length:]
    assert greedy_BT.shape == (2, count)
    if (best_TB2[..., 0] - best_TB2[..., 1]).min() < 1e-3 or len(greedy_BT.unique()) < 8:
        return None
    return prompt_BT, greedy_BT


def _rename_gradients(expected: Expected, names: set[str]) -> None:
    """Gives the gradients the names in the file: transformers 5 calls GPT-NeoX's `embed_out` another name in memory."""
    if "grad/lm_head.weight" in expected and "embed_out.weight" in names:
        expected["grad/embed_out.weight"] = expected.pop("grad/lm_head.weight")
    found = {key.removeprefix("grad/") for key in expected if key.startswith("grad/")}
    assert found == names, found ^ names


def _check_quality(variant: Variant, folder: Path) -> None:
    """Nothing in the fixture is at a value that hides a mistake."""
    weights, expected = load_file(folder / "model.safetensors"), load_file(folder / "expected.safetensors")
    for path, leaf in weights.items():
        assert leaf.dtype == torch.float32 and leaf.std() > (0.05 if leaf.numel() >= 8 else 0.0), path
        assert expected[f"grad/{path}"].abs().max() > 1e-6, f"{path}: no gradient"
        if _is_norm_scale(path):
            assert leaf.abs().min() > 0 and (leaf.numel() < 8 or (leaf - 1).abs().max() > 0.2), path
    real = expected["mask_BT"].bool()
    assert expected["logits_BTV"][real].std() > 0.5
    assert (expected["left_logits_BTV"][expected["left_logits_BTV"].abs().sum(-1) > 0]).shape[0] == real.sum()
    assert (expected["losses"].diff().abs() > 1e-4).all(), expected["losses"]
    window = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("sliding_window")
    assert window is None or window < expected["mask_BT"].sum(1).min()


def _check_reload(variant: Variant, folder: Path) -> None:
    """transformers reads the folder, in both spellings of its config, back to the same logits."""
    expected = load_file(folder / "expected.safetensors")
    with tempfile.TemporaryDirectory() as copy:
        for config in ("config.json", "config_published.json"):
            if not (folder / config).exists():
                continue
            shutil.copy(folder / config, Path(copy) / "config.json")
            shutil.copy(folder / "model.safetensors", copy)
            cls = getattr(transformers, variant.architecture)
            model = cls.from_pretrained(copy, attn_implementation="eager").eval()
            for prefix in ("", "short_"):
                if f"{prefix}tokens_BT" not in expected:
                    continue
                tokens_BT, mask_BT = expected[f"{prefix}tokens_BT"], expected[f"{prefix}mask_BT"]
                logits_BTV = _forward(model, tokens_BT, mask_BT)[0] * mask_BT[..., None]
                torch.testing.assert_close(logits_BTV, expected[f"{prefix}logits_BTV"], rtol=0, atol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the fixtures of the parity tests; needs the [bench] extra.")
    parser.add_argument("--only", choices=VARIANTS, help="make this variant alone")
    parser.add_argument("--out", type=Path, default=FIXTURES, help="folder of the fixtures (default: %(default)s)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in [args.only] if args.only else VARIANTS:
        make(name, 0, args.out / name)
        print(name, flush=True)


if __name__ == "__main__":
    main()
