"""Three tasks whose truth is known, each with prompts inside and outside what the preference data shows."""
