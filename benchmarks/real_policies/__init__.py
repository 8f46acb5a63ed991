"""Policies trained on text that people wrote, measured by evaluators that no model here was fitted with."""
