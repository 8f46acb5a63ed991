"""Measures of token rewards and of rankings, in plain Python, so that every package can use them."""
