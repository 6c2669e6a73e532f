"""The ten functions, one module each.

The names are FunctionBench's (Kim and Lee, CLOUD 2019), which the REAP paper (Ustiugov et al.,
ASPLOS 2021) measures. Each module has `SIZES` (what an input can set beside its seed), `setup()`
(imports and loads; called once, before the guest says that it is ready) and `handle(input)`, which
gives the same result for the same input, however many came before. The inputs are the built-in
guest's: the same names, defaults and ranges.
"""

import importlib
from types import ModuleType

NAMES = (
    "helloworld",
    "chameleon",
    "pyaes",
    "image_rotate",
    "json_serdes",
    "lr_serving",
    "cnn_serving",
    "rnn_serving",
    "lr_training",
    "video_processing",
)


class UnknownFunction(ValueError):
    """No function has this name."""


def load(name: str) -> ModuleType:
    """Imports the function called `name` and initialises it."""
    if name not in NAMES:
        raise UnknownFunction(f"no function is named {name[:40]!r}: use one of {', '.join(NAMES)}")
    # Relative, because two of the functions have the names of the libraries that they use.
    module = importlib.import_module(f".{name}", __name__)
    module.setup()
    return module
