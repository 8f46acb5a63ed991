"""What a reward model is: templates, extraction of token rewards, scorers and bundles. No HTTP, no asyncio."""
