"""Names of files as they can be shown: any bytes but `/` and zero may stand in one."""


def shown(name: object) -> str:
    """A name on one line, with what cannot be printed or stored as text (line ends, broken UTF-8) as an escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in str(name)
    )
