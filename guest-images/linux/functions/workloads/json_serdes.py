"""`json_serdes`: writes a JSON document, parses it and joins it with a catalogue."""

import hashlib
import json
import random

from . import assets
from .parameters import Size, parse

SIZES = (Size("orders", 600, 1, 5000),)

_CITIES = ("Lagos", "Lima", "Łódź", "Lyon", "Pune", "Quito", "Seoul", "Turku")

_catalogue: dict[str, dict] = {}


def setup() -> None:
    """Parses the catalogue."""
    articles = json.loads(assets.path("catalogue.json").read_bytes())
    _catalogue.update((article["id"], article) for article in articles)


def handle(fields: dict) -> dict:
    """Serialises and parses `orders` orders that follow from the seed, and prices them."""
    seed, order_count = parse(fields, SIZES)
    generator = random.Random(seed)
    document = json.dumps(_orders(generator, order_count))
    revenue_cents = 0
    per_category: dict[str, int] = {}
    for order in json.loads(document):
        for line in order["lines"]:
            article = _catalogue[line["article"]]
            cents = article["price_cents"] * line["count"]
            revenue_cents += cents
            category = article["category"]
            per_category[category] = per_category.get(category, 0) + cents
    report = json.dumps({"orders": order_count, "categories": per_category}, sort_keys=True)
    return {
        "document_bytes": len(document),
        "revenue_cents": revenue_cents,
        "sha256": hashlib.sha256((document + report).encode()).hexdigest(),
    }


def _orders(generator: random.Random, count: int) -> list[dict]:
    articles = list(_catalogue)
    return [
        {
            "id": f"{generator.getrandbits(64):016x}",
            "customer": {"number": generator.randrange(10**6), "city": generator.choice(_CITIES)},
            "express": generator.random() < 0.1,
            "note": None,
            "lines": [
                {"article": generator.choice(articles), "count": generator.randint(1, 9)}
                for _ in range(generator.randint(1, 6))
            ],
        }
        for _ in range(count)
    ]
