"""What scoring and PPO both need to know of a causal language model: positions, rotary angles, CPU precision."""
