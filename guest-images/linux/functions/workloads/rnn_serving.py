"""`rnn_serving`: writes a text with a gated recurrent character network, in numpy.

Two layers of gated recurrent units (Cho et al., 2014) in the form with the reset gate behind the
matrix product; the weights are drawn by a seeded generator, since none can be shipped.
"""

import numpy as np

from . import assets
from .parameters import Size, parse

SIZES = (Size("characters", 10, 1, 256),)

ALPHABET = "abcdefghijklmnopqrstuvwxyz -'.,?"
HIDDEN_UNITS = 512
LAYERS = 2
# The seed chooses a text of this many characters, which the network reads before it writes.
_PROMPT_CHARACTERS = 4

_weights: dict[str, np.ndarray] = {}


def setup() -> None:
    """Loads the weights."""
    with np.load(assets.path("rnn.npz")) as stored:
        _weights.update((name, stored[name]) for name in stored.files)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def step(character: int, states: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Reads one character: the probabilities of the next one, and the new states."""
    data = _weights["embedding"][character]
    advanced = []
    for layer, state in enumerate(states):
        given = _weights[f"input{layer}"] @ data + _weights[f"bias{layer}"]
        kept = _weights[f"state{layer}"] @ state
        n = HIDDEN_UNITS
        reset = _sigmoid(given[:n] + kept[:n])
        update = _sigmoid(given[n : 2 * n] + kept[n : 2 * n])
        proposed = np.tanh(given[2 * n :] + reset * kept[2 * n :])
        data = (1 - update) * proposed + update * state
        advanced.append(data)
    scores = _weights["output"] @ data
    powers = np.exp(scores - scores.max())
    return powers / powers.sum(), advanced


def handle(fields: dict) -> dict:
    """Writes `characters` characters; what it begins with and each choice follow from the seed."""
    seed, character_count = parse(fields, SIZES)
    generator = np.random.default_rng(seed)
    prompt = [int(index) for index in generator.integers(0, len(ALPHABET), _PROMPT_CHARACTERS)]
    states = [np.zeros(HIDDEN_UNITS, dtype=np.float32) for _ in range(LAYERS)]
    for character in prompt:
        probabilities, states = step(character, states)
    written, log_likelihood = [], 0.0
    for _ in range(character_count):
        places = np.cumsum(probabilities, dtype=np.float64)
        character = int(np.searchsorted(places, generator.random() * places[-1], side="right"))
        written.append(character)
        log_likelihood += float(np.log(probabilities[character]))
        probabilities, states = step(character, states)
    return {
        "prompt": "".join(ALPHABET[index] for index in prompt),
        "text": "".join(ALPHABET[index] for index in written),
        "log_likelihood": round(log_likelihood, 4),
    }
