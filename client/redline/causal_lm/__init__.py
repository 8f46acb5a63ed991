"""Properties of causal language models that scoring and PPO share: positions, rotary angles, CPU precision."""
