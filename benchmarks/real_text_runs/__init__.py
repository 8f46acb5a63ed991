"""Parts of ``benchmarks.real_text``: reward models and policies on real preference sets."""
