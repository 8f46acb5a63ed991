"""TRL's GRPO against a reward service: ``pip install redline-rm[serve] trl``, then

    redline serve rm &
    python grpo.py --url http://127.0.0.1:8000 --policy POLICY --prompts prompts.jsonl --out grpo

With ``--scalar`` TRL's own trainer is used, which learns from one score per response.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from redline.integrations.trl import RedlineReward, TokenGRPOTrainer


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the reward service")
    parser.add_argument("--policy", required=True, help="a model folder or hub id")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with the key prompt")
    parser.add_argument("--out", required=True, help="folder of the trained policy")
    parser.add_argument("--scalar", action="store_true", help="one score per response, not token rewards")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--group", type=int, default=8, help="responses per prompt")
    parser.add_argument("--rollouts", type=int, default=64, help="responses per step")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prompts = [json.loads(line)["prompt"] for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(args.policy, trust_remote_code=False)
    trainer = (GRPOTrainer if args.scalar else TokenGRPOTrainer)(
        model=args.policy,
        reward_funcs=RedlineReward(args.url, tokenizer),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in prompts]}),
        args=GRPOConfig(
            output_dir=args.out,
            per_device_train_batch_size=args.rollouts,
            num_generations=args.group,
            max_completion_length=64,
            max_steps=args.steps,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            model_init_kwargs={"dtype": "float32"},
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=5,
            report_to="none",
            disable_tqdm=True,
            seed=args.seed,
        ),
    )
    trainer.train()
    trainer.save_model(args.out)


if __name__ == "__main__":
    main()
