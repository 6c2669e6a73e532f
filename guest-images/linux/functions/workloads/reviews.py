"""Reviews by a seeded generator: words by Zipf's law, and of two sorts with a bias to either."""

import random
from itertools import accumulate

_SYLLABLES = [
    c + v for c in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t") for v in "aeiou"
]
_COMMON_WORDS = 6000
_TELLING_WORDS = 300
# How often a word tells the sort of its review, and how often it then tells the truth.
_TELLING_SHARE = 0.15
_TRUTH_SHARE = 0.7


def _words(generator: random.Random, count: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(generator.choices(_SYLLABLES, k=generator.randint(2, 4)))] = None
    return list(words)


class ReviewWriter:
    """Writes reviews; every writer has the same vocabulary."""

    def __init__(self) -> None:
        words = _words(random.Random("vocabulary"), _COMMON_WORDS + 2 * _TELLING_WORDS)
        self._common = words[:_COMMON_WORDS]
        self._negative = words[_COMMON_WORDS : _COMMON_WORDS + _TELLING_WORDS]
        self._positive = words[_COMMON_WORDS + _TELLING_WORDS :]
        self._weights = list(accumulate(1 / rank for rank in range(1, _COMMON_WORDS + 1)))

    def write(self, generator: random.Random, positive: bool, word_count: int) -> str:
        """A review of `word_count` words."""
        words = generator.choices(self._common, cum_weights=self._weights, k=word_count)
        for index in range(word_count):
            if generator.random() < _TELLING_SHARE:
                true = generator.random() < _TRUTH_SHARE
                words[index] = generator.choice(
                    self._positive if positive == true else self._negative
                )
        return " ".join(words)
