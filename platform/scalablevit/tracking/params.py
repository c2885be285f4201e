"""Parameters as MLflow stores them: one level, dotted names."""

from scalablevit.config.section import PlainValues


def flatten(tree: PlainValues, prefix: str = "") -> PlainValues:
    """Return a nested mapping as one level with dotted keys; an empty mapping stays a value.

    Args:
        tree: the nested mapping.
        prefix: beginning of all keys, such as `cluster.`.
    """
    flat: PlainValues = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
