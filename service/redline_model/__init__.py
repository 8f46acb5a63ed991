"""The model package: encoding, forward passes, token rewards, scorers and bundles. No HTTP, no asyncio."""
