"""The files that functions load: models, pictures, texts; made by `generate_assets.py`."""

import os
from pathlib import Path


def path(name: str) -> Path:
    """Where the file `name` is: where REAPVM_ASSETS says, else beside the server."""
    folder = os.environ.get("REAPVM_ASSETS")
    return (Path(folder) if folder else Path(__file__).resolve().parent.parent / "assets") / name
