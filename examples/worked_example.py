"""One response scored by hand: the model's probabilities are written down here, the rewards are computed by Redline.

    python examples/worked_example.py

prints the tables of docs/explanation/seq2seq-reward-model.md.
"""

from __future__ import annotations

import torch

from redline_model.extraction import aggregate_rewards, divergence, extract, token_statistics
from redline_model.options import AGGREGATES, Extraction, Mode

# For each token of "Hold the red button." and its end token: what a reward model might expect there, most probable
# first. Probabilities of one position add up to 1; all other tokens have probability 0.
EXPECTED: list[tuple[str, dict[str, float]]] = [
    ("Hold", {"Hold": 0.90, "Press": 0.10}),
    ("the", {"the": 0.98, "your": 0.02}),
    ("red", {"round": 0.80, "red": 0.15, "small": 0.05}),
    ("button", {"button": 0.95, "light": 0.05}),
    (".", {"for": 0.55, ".": 0.45}),
    ("(end)", {"(end)": 0.70, "Wait": 0.30}),
]

# of the pass with the response in the context, without a correction
MODES: tuple[Mode, ...] = ("paper", "paper_centered", "margin", "logprob_centered", "probability")


def main() -> None:
    """Print the tables of the page."""
    words = sorted({word for _, probabilities in EXPECTED for word in probabilities})
    probabilities = torch.zeros(len(EXPECTED), len(words))
    for row, (_, expected) in enumerate(EXPECTED):
        for word, probability in expected.items():
            probabilities[row, words.index(word)] = probability
    targets = torch.tensor([words.index(token) for token, _ in EXPECTED])

    statistics = token_statistics(probabilities.log(), targets)
    rewards = {mode: extract(statistics, mode, Extraction()) for mode in MODES}

    print("| t | token of the response | the model expects | log pi(y_t) | H(pi) |")
    print("|---|---|---|---|---|")
    for row, (token, expected) in enumerate(EXPECTED):
        shown = ", ".join(f"{word} {probability:.2f}" for word, probability in expected.items())
        print(f"| {row + 1} | {token} | {shown} | {statistics.logprob[row]:.2f} | {statistics.entropy[row]:.2f} |")
    print()
    print("| token | " + " | ".join(f"`{mode}`" for mode in MODES) + " |")
    print("|---" * (len(MODES) + 1) + "|")
    for row, (token, _) in enumerate(EXPECTED):
        print(f"| {token} | " + " | ".join(f"{signed(float(rewards[mode][row]))}" for mode in MODES) + " |")
    for aggregate in AGGREGATES:
        scores = (aggregate_rewards(rewards[mode], aggregate) for mode in MODES)
        print(f"| **{aggregate}** | " + " | ".join(signed(score) for score in scores) + " |")
    print()
    first = divergence(statistics.agrees)
    print(f"First divergence: index {first}, the token {'' if first is None else EXPECTED[first][0]!r}.")


def signed(value: float) -> str:
    """Two digits after the point, with a sign unless it is zero."""
    return "0.00" if abs(value) < 0.005 else f"{value:+.2f}"


if __name__ == "__main__":
    main()
