"""The one exception for what a user can cause and mend."""


class UserError(Exception):
    """A mistake in a recipe, in data or in what the cluster offers; shown without a traceback, exit code 2.

    Args:
        what: what is wrong, with the value received.
        where: file, line or dotted recipe key.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UserErrors(UserError):
    """Several mistakes found at one gate, reported together."""

    def __init__(self, errors: list[UserError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = errors
