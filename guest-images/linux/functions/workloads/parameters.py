"""The input of an invocation: a seed and sizes, each with a default and a range."""

from typing import Any, NamedTuple

_SEED_MAX = 2**64 - 1
_SEED_DEFAULT = 1
# The longest part of an unknown field's name that an error repeats.
_FIELD_NAME_CHARACTERS = 40


class Size(NamedTuple):
    """A size that an input can set. The maximum bounds time and memory of one invocation."""

    name: str
    default: int
    minimum: int
    maximum: int


class InputError(ValueError):
    """The input cannot be served; the message says why and is for the one who sent it."""


def parse(fields: Any, sizes: tuple[Size, ...]) -> tuple[int, ...]:
    """Gives the seed and the sizes, in the order of `sizes`, of an input that sets nothing else."""
    if not isinstance(fields, dict):
        raise InputError('the input is no JSON object: send one such as {"seed":1}')
    known = ["seed", *(size.name for size in sizes)]
    for field in fields:
        if field not in known:
            raise InputError(
                f"the input has an unknown field {field[:_FIELD_NAME_CHARACTERS]!r}: "
                f"this function knows {', '.join(known)}"
            )
    values = [_integer(fields, "seed", _SEED_DEFAULT)]
    for size in sizes:
        value = _integer(fields, size.name, size.default)
        if not size.minimum <= value <= size.maximum:
            raise InputError(
                f"input field {size.name!r} is {value}: "
                f"it must be from {size.minimum} to {size.maximum}"
            )
        values.append(value)
    return tuple(values)


def _integer(fields: dict, name: str, default: int) -> int:
    value = fields.get(name, default)
    # `bool` is an `int` in Python, and is none in JSON.
    if type(value) is not int or not 0 <= value <= _SEED_MAX:
        raise InputError(f"input field {name!r} is no integer from 0 to {_SEED_MAX}")
    return value
