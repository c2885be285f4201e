"""Write a first recipe of one's own, and the JSON schema with which editors complete its keys."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from scalablevit.config.commands import SCRIPTS, command_line
from scalablevit.config.errors import UserError
from scalablevit.config.json_schema import recipe_schema, schema_text
from scalablevit.config.task_info import TASKS

TEMPLATES = Path(__file__).resolve().parents[1] / "config" / "templates"
SCHEMA_FILE = "recipe.schema.json"


def template_names() -> list[str]:
    """Return the names of the templates: `pretrain`, `fine_tune`, `segment`, `detect`."""
    order = {"pretrain": 0, "fine_tune": 1, "segment": 2, "detect": 3}
    return sorted((path.stem for path in TEMPLATES.glob("*.yaml")), key=lambda name: (order.get(name, 9), name))


def write_new_recipe(template: str, file: Path, imports: Sequence[str] = ()) -> int:
    """Write a recipe from a template, and the JSON schema next to it; a schema that is there already is replaced.

    Args:
        template: one of `template_names`.
        file: the recipe; it must not exist yet.
        imports: users' modules that the recipe names, imported already: the schema has what they registered.

    Returns:
        The exit code.

    Raises:
        UserError: the file exists already, or cannot be written.
    """
    if file.exists():
        raise UserError(f"{file} is there already", where="FILE", fix="name another file, or remove this one")
    text = (TEMPLATES / f"{template}.yaml").read_text(encoding="utf-8")
    text += f"imports: [{', '.join(imports)}]\n" if imports else ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / SCHEMA_FILE).write_text(schema_text(recipe_schema()), encoding="utf-8")
        file.write_text(f"# yaml-language-server: $schema={SCHEMA_FILE}\n{text}", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}", where="FILE", fix="name another") from None
    quoted = shlex.quote(str(file))
    print(f"written: {file}, and {SCHEMA_FILE} next to it, by which editors complete and check its keys")
    print("next:")
    start = ", model.init (null: random weights)" if "init: models:/" in text else ""
    print(f"  1. set data.root, the folders below it{start}, and whatever else differs")
    print(f"  2. look at the data   {command_line('check-data')} --recipe {quoted}")
    print(f"  3. see the plan       {command_line(_verb(text))} --recipe {quoted} --dry-run")
    print(f"  4. train              {command_line(_verb(text))} --recipe {quoted}")
    if (SCRIPTS.parent / "Makefile").is_file():
        print(f"     or, as a job       make full ARGS={shlex.quote(f'--recipe {quoted}')}")
    return 0


def _verb(text: str) -> str:
    """Return the verb that runs a template's one stage."""
    return next(info.stage_name for info in TASKS.values() if f"kind: {info.kind}\n" in text)
