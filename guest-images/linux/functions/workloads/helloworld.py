"""`helloworld`: greets in several languages. The least that a function can do."""

import hashlib
import random
from string import Template

from .parameters import Size, parse

SIZES = (Size("greetings", 8, 1, 64),)

_GREETINGS = {
    "Czech": "Ahoj, $name!",
    "Danish": "Hej, $name!",
    "Dutch": "Hallo, $name!",
    "English": "Hello, $name!",
    "Finnish": "Hei, $name!",
    "French": "Bonjour, $name !",
    "German": "Guten Tag, $name!",
    "Greek": "Γειά σου, $name!",
    "Hungarian": "Szia, $name!",
    "Icelandic": "Halló, $name!",
    "Italian": "Ciao, $name!",
    "Japanese": "こんにちは、$name！",
    "Polish": "Cześć, $name!",
    "Portuguese": "Olá, $name!",
    "Spanish": "¡Hola, $name!",
    "Swahili": "Habari, $name!",
    "Turkish": "Merhaba, $name!",
    "Welsh": "Helo, $name!",
}
_NAMES = ("Ada", "Alan", "Barbara", "Dennis", "Edsger", "Frances", "Grace", "John", "Ken", "Radia")

_templates: dict[str, Template] = {}


def setup() -> None:
    """Parses the message catalogue."""
    _templates.update((language, Template(text)) for language, text in _GREETINGS.items())


def handle(fields: dict) -> dict:
    """Writes `greetings` greetings in languages and to people that follow from the seed."""
    seed, count = parse(fields, SIZES)
    generator = random.Random(seed)
    languages = list(_templates)
    greetings = [
        _templates[generator.choice(languages)].substitute(name=generator.choice(_NAMES))
        for _ in range(count)
    ]
    digest = hashlib.sha256("\n".join(greetings).encode()).hexdigest()
    return {"first": greetings[0], "greetings": count, "sha256": digest}
