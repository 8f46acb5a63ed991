"""(prompt, response) to token ids: templates, encoders and their limits."""
