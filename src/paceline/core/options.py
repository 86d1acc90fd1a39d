"""Options written as `NAME[:key=value,...]`, read into the dataclass that declares them; whatever is wrong is one line that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.core.errors import UsageError


def split_options(text: str, what: str) -> tuple[str, dict[str, str]]:
    """Name and options of `NAME[:key=value,...]`; keys may be written with `-` for `_`.

    Args:
        what: kind of thing that is named, for messages.

    Raises:
        UsageError: for an option without a value.
    """
    name, _, tail = text.strip().partition(":")
    options: dict[str, str] = {}
    for item in filter(None, (piece.strip() for piece in tail.split(","))):
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"{what} option {item!r} must read key=value, as in {name}:key=value")
        options[key.strip().replace("-", "_")] = value.strip()
    return name, options


def read_options(kind: type[Any], options: Mapping[str, str], what: str) -> Any:
    """An instance of the dataclass `kind`, every value converted to its field's type.

    Args:
        what: whose options they are, for messages.

    Raises:
        UsageError: for an unknown option or a value that it cannot have, naming both.
    """
    from pydantic import TypeAdapter, ValidationError

    known = list(getattr(kind, "__dataclass_fields__", {}))
    for option in options:
        if option not in known:
            has = f"it has: {', '.join(known)}" if known else "it has no options at all"
            raise UsageError(f"{what} has no option {option!r}; {has}")
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UsageError):  # what the dataclass itself says of its values
            raise cause from None
        name = first["loc"][0] if first["loc"] else "?"
        raise UsageError(f"{what}: option {name}={first.get('input')!r}: {first['msg']}") from None
