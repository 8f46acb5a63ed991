"""Reward models on text that people wrote and corrected: do their token rewards find the words that people changed?"""
