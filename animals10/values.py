"""Checks of the values that people give to `Training`, `Augmentation` and architectures."""

from collections.abc import Mapping
from typing import Any

from animals10.files import UserError


def plain_number(name: str, value: Any, kind: type = float) -> Any:
    """Returns a number as plain float or int, as JSON and csv can hold it; NumPy's numbers are welcome.

    Args:
        name: What the number is, for the message.
        value: The number.
        kind: `float` or `int`.

    Raises:
        UserError: The value is no number, or no whole number.
    """
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if isinstance(value, (str, bool)) or number is None or number != value:
        raise UserError(f"{name} is {value!r}; allowed is {'a number' if kind is float else 'a whole number'}.")
    return number


def check_values(owner: Any, allowed: Mapping[str, tuple[bool, str]]) -> None:
    """Checks fields of a dataclass.

    Args:
        owner: The dataclass.
        allowed: For each field, whether its value is allowed, and which values are.

    Raises:
        UserError: A value is not allowed.
    """
    for name, (is_allowed, expected) in allowed.items():
        if not is_allowed:
            kind = type(owner).__name__
            raise UserError(f"{kind}: {name} is {getattr(owner, name)!r}; allowed is {expected}.")
