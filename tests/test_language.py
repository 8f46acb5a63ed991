"""Retired words do not come back: names and phrases that were replaced by the field's own terms.

Each entry has a pattern and what to write instead. ``ALLOWED`` lists the places where an old word must stay: flags,
environment variables, JSON keys, seed strings and the notes that explain a renaming.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RETIRED = {
    # names
    r"\bstrays?\b|_strays?\b|\bstray_": "mismatched response",
    r"\bragged|_ragged": "packed",
    r"\bWaitingRoom\b": "JobQueue",
    r"\b[Jj]udge?ments?\b": "ScoredResponse, score",
    r"\bjudged?\b(?!-)": "scored; 'gold score' for the programmatic truth",
    r"\bdrop-?ins?\b|\bDropIn\b": "compatible endpoint",
    r"\bBorderError\b": "PromptBoundaryError",
    r"\bblam(?:e|ed|es|ing)\b": "error score, negative reward",
    r"\blineage\b|\bdescendants\b": "ancestry, child processes",
    r"\bcontenders?\b": "backend, method",
    r"\bHERO\b|\bhero\b": "MAIN_POLICY",
    r"\bpatience\b": "max_elapsed_s",
    r"\bOwnForm\b|\bown_form\b": "ChatTemplateParser",
    r"\bReading\b(?! (?:and|or|files|rows|a |the ))|\breading_of\b|\bmeasure_all\b": "RewardSpec, forward_all",
    # metaphors
    r"\b(?:slow|padded|fast|same|other|one) roads?\b|\bthe road\b": "path",
    r"\b(?:a|the|no|has a|each) doors?\b": "endpoint, hook",
    r"\bin the books\b|\bbooks of\b|'s books\b": "record",
    r"\bwarm (?:prompts?|prefix(?:es)?|cache)\b|\bstays? warm\b": "cached prefixes",
    r"\bstrangers?\b": "untrusted",
    r"\bthe kernel's?\b(?= (?:sees|raises|class|error))": "the model package",
    # phrases
    r"\ba (?:reward|number|score|span|line|row|file) a (?:token|sample|response|pair|step|item|report|kind)\b": "per",
    r"\btold (?:beside|of)\b": "reported",
    r"\bnobody (?:shall|vouches)\b": "say what is done and why",
    r"\bworlds?\b": "synthetic task",
}

# names that do not say what they stand for
PRONOUNS = {"told", "mine", "theirs", "ours", "asked", "answered"}

# (file pattern, text that may stand there)
ALLOWED = [
    (r".*", r"dropin_too_long|dropin-too-long|DROPIN_TOO_LONG"),
    (r".*", r"patience[_-]s"),
    (r".*", r"redline_blamed_share"),
    (r".*", r"/strays\""),
    (r".*", r"a patience diff|--patience"),
    # keys of stored results, and folders that hold them
    (
        r"benchmarks/.*|examples/.*|tests/test_real_text\.py|tests/test_results_pages\.py",
        r"[\"']?(?:blame|judge|world)[\"'/]",
    ),
    (r"examples/quickstart/demo\.py", r"--out (?:world|judge)\b"),
    (r"benchmarks/real_text/.*|tests/test_real_text\.py", r"\bjudge(?=[=:])|plan\.judge"),
    (r"docs/reference/glossary\.md", r"drop-in endpoint"),
    (r"tests/test_language\.py", r".*"),
]


def tracked() -> list[str]:
    """Text files of the repository, but for data."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    suffixes = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ""}
    return [name for name in names if Path(name).suffix in suffixes and name != "LICENSE"]


@pytest.mark.parametrize("pattern", sorted(RETIRED))
def test_retired_words_are_gone(pattern: str) -> None:
    found = []
    for name in tracked():
        path = ROOT / name
        if not path.is_file():
            continue
        allowed = [text for files, text in ALLOWED if re.fullmatch(files, name)]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            kept = re.sub("|".join(allowed), "", line) if allowed else line
            if re.search(pattern, kept):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, f"say instead: {RETIRED[pattern]}\n" + "\n".join(found[:40])


def test_no_name_is_a_pronoun() -> None:
    found = []
    for name in tracked():
        path = ROOT / name
        if path.suffix == ".py" and path.is_file():
            text = path.read_text(encoding="utf-8")
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type == tokenize.NAME and token.string in PRONOUNS:
                    found.append(f"{name}:{token.start[0]}: {token.line.strip()[:100]}")
    assert not found, "name the thing\n" + "\n".join(found[:40])
