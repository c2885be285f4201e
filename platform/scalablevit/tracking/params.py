"""Parameters as MLflow shows them: one level, dotted names."""

from scalablevit.config.section import PlainValues


def flatten(tree: PlainValues, prefix: str = "") -> PlainValues:
    """A nested mapping with dotted keys; an empty mapping stays a value."""
    found: PlainValues = {}
    for key, value in tree.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found
