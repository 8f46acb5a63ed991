"""Token rewards for other RL frameworks: one module per framework, which imports that framework."""
