"""Makes random adapters with PEFT on the families' tiny models, and writes down what they compute. Needs [bench].

    python tests/train/peft_format/make_adapters.py [--only NAME] [--out DIR]

A case becomes a folder `fixtures/NAME`: the adapter as PEFT saves it, and `expected.safetensors` with `tokens_BT` and
what PEFT computes for them, `logits` of every position or of a classifier.
"""

import argparse
import copy
import json
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import peft  # type: ignore[reportMissingImports]
import torch  # type: ignore[reportMissingImports]
import transformers  # type: ignore[reportMissingImports]
from adapter_cases import BASES, CASES, FIXTURES, Case
from safetensors.torch import save_file

TOKENS = 9


def base(case: Case) -> Any:
    auto: Any = transformers.AutoModelForCausalLM
    if case.classifies:
        auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(BASES / case.base, attn_implementation="eager").eval()


@torch.no_grad()
def compute(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The logits of the tokens, without those of virtual ones."""
    logits = model(tokens_BT, attention_mask=torch.ones_like(tokens_BT)).logits
    return logits if logits.ndim == 2 else logits[:, -tokens_BT.shape[1] :]


def make(name: str, seed: int, folder: Path) -> None:
    """Writes the case's adapter, every trained number of it moved, and what the model computes with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT has a word to say about every other option
        for attempt in range(seed, seed + 50):
            torch.manual_seed(zlib.crc32(f"{name} {attempt}".encode()))
            if _make(CASES[name], folder):
                return
    raise RuntimeError(f"{name}: no seed from {seed} on is well-conditioned")


def _make(case: Case, folder: Path) -> bool:
    """Whether rounding decides little about what was made."""
    plain = base(case)
    model = peft.get_peft_model(base(case), getattr(peft, case.kind)(**case.config)).eval()
    with torch.no_grad():
        for leaf in model.parameters():
            if leaf.requires_grad:
                leaf.add_(0.1 * torch.randn_like(leaf))
    tokens_BT = torch.randint(3, 64, (2, TOKENS))
    logits = compute(model, tokens_BT)
    assert (logits - compute(plain, tokens_BT)).abs().max() > 0.05
    if (logits - compute(copy.deepcopy(model).double(), tokens_BT)).abs().max() > 6e-6:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    described = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    described["base_model_name_or_path"] = case.base  # not where it is on this machine
    (folder / "adapter_config.json").write_text(
        json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    save_file({"tokens_BT": tokens_BT, "logits": logits.contiguous()}, folder / "expected.safetensors")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the fixtures of the adapters' tests; needs the [bench] extra.")
    parser.add_argument("--only", choices=CASES, help="make this case alone")
    parser.add_argument("--out", type=Path, default=FIXTURES, help="folder of the fixtures (default: %(default)s)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in [args.only] if args.only else CASES:
        make(name, 0, args.out / name)
        print(name, flush=True)


if __name__ == "__main__":
    main()
