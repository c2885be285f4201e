"""Wrong recipes: a failing case for every rule of the schema, and thousands of mutated ones.

SCALABLEVIT_FUZZED sets the number of mutated recipes (2000; `make chaos` takes 10 000), SCALABLEVIT_SEED their seed.
"""

import ast
import copy
import inspect
import os
import random
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import annotated_types
import pytest
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Recipe

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted((REPOSITORY / "pipelines" / "recipes").glob("*.yaml"))
FUZZED = int(os.environ.get("SCALABLEVIT_FUZZED", "2000"))
SEED = int(os.environ.get("SCALABLEVIT_SEED", "0"))
LONGEST_S = 2.0

pytestmark = pytest.mark.row("Configuration: a case for every rule, mutated recipes")

Path_ = tuple[str | int, ...]

# --- recipes in which every section stands, so that every key of the schema has its place ---

STAGE = """
model: {name: resnet18, drop_path_rate: 0.1, init: null, options: {key: 1}}
optimizer:
  lr: 1e-3
  betas: [0.9, 0.99]
  layer_decay: 0.9
  clip_norm: 1.0
  schedule: {kind: multistep, decay_epochs: [1, 2]}
training:
  epochs: 3
  global_batch: 8
  ema_decay: 0.9
  evaluate_every: {epochs: 1.0}
  stop_after: {evaluations_without_gain: 2}
  checkpoint_every: {epochs: 1.0}
  keep: {last: 1}
  not_finite: {limit: 2}
cluster: {min_workers: 1, storage: null}
tracking: {uri: null, register_as: null}
"""
DATA = """
  root: set
  shapes: {train_images: 1, val_images: 1}
  mean: [0.5, 0.5, 0.5]
  std: [0.5, 0.5, 0.5]
"""
KINDS = {
    "classification": """
data:
  source: image_folder
  train: {images: train, masks: null, annotations: null}
  val: {images: val}
  crop_scale: [0.1, 1.0]
  crop_ratio: [0.75, 1.25]
  rand_augment: {magnitude: 9}
task: {kind: classification}
""",
    "segmentation": """
data:
  source: mask_pairs
  train: {images: train, masks: m}
  val: {images: val, masks: m}
  classes: [a, b]
  scale_range: [0.5, 2.0]
task:
  kind: segmentation
  head: upernet
  head_channels: 64
  sliding: {window: 64, stride: 32}
  test_time_augmentation: {scales: [1.0]}
""",
    "detection": """
data:
  source: coco
  train: {images: train, annotations: t.json}
  val: {images: val, annotations: v.json}
  train_short_sides: [480, 800]
task: {kind: detection, head: mask_rcnn}
""",
}


def base(kind: str) -> dict[str, Any]:
    stage = yaml.safe_load(KINDS[kind]) | yaml.safe_load(STAGE.replace("1e-3", "0.001"))
    stage["data"] |= yaml.safe_load(DATA)
    return {"name": "r", "stages": {"first": stage}}


class Plain(yaml.CSafeDumper):
    """Writes what stands in two places twice: recipes have no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# --- rules, read from the schema ---


@dataclass(frozen=True)
class Rule:
    """A way in which the value at `path` breaks one keyword of the schema."""

    kind: str
    path: Path_
    keyword: str
    value: Any
    """What stands there instead; `GONE` for nothing."""
    shown: str
    """What the message must hold beside place and key."""

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.path[2:]))} {self.keyword} {self.value!r}"[:90]


GONE = object()
SILENT = {"title", "description", "default", "hashed", "type", "$ref", "properties", "$defs", "discriminator",
          "prefixItems", "oneOf", "items"}  # fmt: skip
"""Keywords that refuse nothing, or are followed by `rules_of`."""
WRONG_TYPE: dict[str, list[Any]] = {
    "integer": ["text", True, 1.5, [1], {}, float("inf"), 10**400],
    "number": ["text", "1", True, [1.0], {}, float("inf"), float("-inf"), float("nan")],
    "string": [3, True, 1.5, ["a"], {}],
    "boolean": ["yes", 1, 0.0, []],
    "array": ["text", 3, {"a": 1}],
    "object": ["text", 3, [1]],
}
WRONG_TEXT = ["", "-", "a/b", "a b", "\N{SNOWMAN}", "../a", "A" * 300]
"""Of these at least one breaks any pattern in the schema."""


class Walk:
    """Follows the schema along a recipe of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.recipe = base(kind)
        self.schema = Recipe.model_json_schema()

    def rules(self) -> Iterator[Rule]:
        yield from self._of(self.schema, self.recipe, ())

    def _rule(self, path: Path_, keyword: str, value: Any, shown: str | None = None) -> Rule:
        plain = "" if isinstance(value, list | dict) else repr(value)
        return Rule(
            self.kind, path, keyword, value, (plain if len(plain) < 60 else plain[:50]) if shown is None else shown
        )

    def _of(self, schema: dict[str, Any], node: Any, path: Path_, *, nullable: bool = False) -> Iterator[Rule]:
        if "$ref" in schema:
            schema = self.schema["$defs"][schema["$ref"].rpartition("/")[2]] | {
                k: v for k, v in schema.items() if k != "$ref"
            }
        if "anyOf" in schema:
            options = [each for each in schema["anyOf"] if each != {"type": "null"}]
            nullable = len(options) < len(schema["anyOf"])
            if len(options) == 1:
                yield from self._of(options[0], node, path, nullable=nullable)
            else:
                yield self._rule(path, "anyOf", {"a": 1})
            return
        if not nullable and path:
            yield self._rule(path, "null", None)
        if "oneOf" in schema:
            tag = schema["discriminator"]["propertyName"]
            yield self._rule((*path, tag), "tag", "nonsense")
            yield self._rule((*path, tag), "tag", GONE, "is missing")
            yield from self._of({"$ref": schema["discriminator"]["mapping"][node[tag]]}, node, path)
            return
        for value in WRONG_TYPE[schema["type"]] if path else []:
            yield self._rule(path, "type", value)
        for keyword, bound in schema.items():
            if keyword not in SILENT:
                yield from self._keyword(keyword, bound, schema, node, path)
        for number, item in enumerate(schema.get("prefixItems", [schema["items"]] if "items" in schema else [])):
            yield from self._of(item, node[number], (*path, number))

    def _keyword(self, keyword: str, bound: Any, schema: dict[str, Any], node: Any, path: Path_) -> Iterator[Rule]:
        if keyword in ("required", "additionalProperties", "patternProperties"):
            yield from self._section(keyword, bound, schema, node, path)
        elif keyword == "minItems" and "prefixItems" in schema:  # a pair: what is missing is named by its place
            yield self._rule(path, keyword, node[: bound - 1], "is missing")
        else:
            step = 1 if schema["type"] == "integer" else 1e-6
            broken: dict[str, Callable[[], list[Any]]] = {
                "minimum": lambda: [bound - step],
                "maximum": lambda: [bound + step],
                "exclusiveMinimum": lambda: [bound],
                "exclusiveMaximum": lambda: [bound],
                "minLength": lambda: [""],
                "minItems": lambda: [node[: bound - 1]],
                "maxItems": lambda: [[*node, *node[:1]]],
                "enum": lambda: ["nonsense"],
                "const": list,  # the tag of a union, whose rule is the section's
                "pattern": lambda: [text for text in WRONG_TEXT if not re.search(bound, text)],
            }
            assert keyword in broken, f"no case for the keyword {keyword} at {path}"
            yield from (self._rule(path, keyword, value) for value in broken[keyword]())

    def _section(self, keyword: str, bound: Any, schema: dict[str, Any], node: Any, path: Path_) -> Iterator[Rule]:
        if keyword == "required":
            yield from (self._rule((*path, name), keyword, GONE, "is missing") for name in bound)
        elif keyword == "patternProperties":
            ((pattern, section),) = bound.items()
            bad = [text for text in WRONG_TEXT if not re.search(pattern, text)]
            yield from (self._rule((*path, text), keyword, node["first"], "") for text in bad)
            yield from self._of(section, node["first"], (*path, "first"))
        elif bound is False:
            yield self._rule((*path, "nonsense"), "additionalProperties", 3, "unknown key 'nonsense'")
            yield from self._fields(schema["properties"], node, path)
        else:
            yield from self._of(bound, node["key"], (*path, "key"))

    def _fields(self, properties: dict[str, Any], node: Any, path: Path_) -> Iterator[Rule]:
        for name, field in properties.items():
            # the tag of a union is its own rule, of the section around it
            if "const" not in field:
                yield from self._of(field, node.get(name), (*path, name))


RULES = [
    rule
    for kind in KINDS
    for rule in Walk(kind).rules()
    if kind == "classification" or rule.path[2:3] in (("data",), ("task",))  # the other sections are the same
]


def changed(rule: Rule) -> dict[str, Any]:
    tree = base(rule.kind)
    node: Any = tree
    for part in rule.path[:-1]:
        node = node[part]
    if rule.value is GONE:
        del node[rule.path[-1]]
    else:
        node[rule.path[-1]] = rule.value
    return tree


def refusal(tree: Any, tmp_path: Path) -> UserError:
    """What a recipe is refused with; an empty error when it is accepted."""
    file = tmp_path / "r.yaml"
    file.write_text(yaml.dump(tree, Dumper=Plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        load_recipe(file)
    except UserError as error:
        return error
    return UserError("accepted")


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipes_that_rules_are_tried_on_are_right(kind: str, tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(base(kind)))
    assert load_recipe(file).stages["first"].task.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_refuses_with_place_and_value(kind: str, tmp_path: Path):
    """In one test for each kind: a thousand cases of a few milliseconds."""
    wrong = []
    for rule in (rule for rule in RULES if rule.kind == kind):
        said = str(refusal(changed(rule), tmp_path))
        key, shown = ".".join(str(part) for part in rule.path), rule.shown
        if len(rule.path) <= 2 and rule.path[0] == "stages":  # answered before the schema is looked at
            gone = len(rule.path) == 1 and rule.value in (GONE, None)
            key, shown = ("", "is missing") if gone else ("stages", "")
        # a missing key has no line: the place is then that of its section, or of the file
        place = re.search(rf"{re.escape(str(tmp_path / 'r.yaml'))}(:\d+)?: ", said)
        if not place or key not in said or shown not in said:
            wrong.append(f"{rule} -> {said}")
    assert not wrong, "\n".join(wrong)


def test_there_is_a_rule_for_every_constraint_of_every_field():
    """The other way round: from the fields' own annotations, without the JSON schema."""
    keywords = {
        annotated_types.Ge: "minimum",
        annotated_types.Le: "maximum",
        annotated_types.Gt: "exclusiveMinimum",
        annotated_types.Lt: "exclusiveMaximum",
    }
    covered = {(rule.path[-1], rule.keyword) for rule in RULES} | {
        (rule.path[-2], rule.keyword) for rule in RULES if isinstance(rule.path[-1], int)
    }
    missing, count = [], 0
    for model in sections(Recipe, set()):
        for name, field in model.model_fields.items():
            for constraint in constraints(field):
                count += 1
                if isinstance(constraint, annotated_types.MinLen):
                    wanted = {(name, "minItems"), (name, "minLength")}
                elif isinstance(constraint, annotated_types.MaxLen):
                    wanted = {(name, "maxItems")}
                elif hasattr(constraint, "pattern"):
                    wanted = {(name, "pattern"), ("a b", "patternProperties")}
                else:
                    wanted = {(name, keywords[type(constraint)])}
                if not wanted & covered:
                    missing.append(f"{model.__name__}.{name}: {constraint}")
    assert not missing
    assert count > 100
    for rule in ("tag", "enum", "null", "type", "required", "additionalProperties", "anyOf"):
        assert any(each.keyword == rule for each in RULES)


def constraints(part: Any) -> Iterator[Any]:
    """Bounds, lengths and patterns in a field, however deep in its type."""
    if isinstance(part, FieldInfo):
        yield from (each for each in part.metadata if type(each).__name__ != "Strict")
        yield from constraints(part.annotation)
    for argument in getattr(part, "__metadata__", ()):
        yield from constraints(argument)
    for argument in getattr(part, "__args__", ()):
        yield from constraints(argument)


def sections(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    found: list[Any] = [field.annotation for field in model.model_fields.values()]
    seen.add(model)
    while found:
        part = found.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            if part not in seen:
                sections(part, seen)
        else:
            found.extend(getattr(part, "__args__", ()))
    return seen


# --- validators: rules that the schema cannot tell ---

Change = tuple[str, Any]
VALIDATORS: list[tuple[str, list[Change], str]] = [
    ("classification", [("data.root", "~somebody/set")], "data.root"),
    ("classification", [("data.train.images", "/abs")], "inside data.root"),
    ("classification", [("data.train.images", "a/../..")], "inside data.root"),
    ("segmentation", [("data.val.masks", "..")], "inside data.root"),
    ("detection", [("data.val.annotations", "../v.json")], "inside data.root"),
    ("classification", [("data.eval_resize", 100)], "eval_resize (100)"),
    ("classification", [("data.crop_scale", [0.5, 0.4])], "crop_scale [0.5, 0.4]"),
    ("classification", [("data.crop_scale", [0.0, 0.4])], "crop_scale [0.0, 0.4]"),
    ("classification", [("data.crop_ratio", [2.0, 0.4])], "crop_ratio [2.0, 0.4]"),
    ("segmentation", [("data.train.masks", None)], "train.masks and val.masks are needed"),
    ("segmentation", [("data.long_side", 100)], "long_side (100)"),
    ("segmentation", [("data.scale_range", [2.0, 0.5])], "scale_range [2.0, 0.5]"),
    ("detection", [("data.val.annotations", None)], "val.annotations are needed"),
    ("detection", [("data.long_side", 100)], "long_side (100)"),
    ("detection", [("data.train_short_sides", [90, 80])], "[90, 80] must rise"),
    ("detection", [("data.train_short_sides", [90, 1400])], "end above long_side"),
    ("segmentation", [("task.sliding.stride", 65)], "stride (65)"),
    ("classification", [("optimizer.schedule.warmup_epochs", 1.0), ("optimizer.schedule.warmup_steps", 2)], "not both"),
    ("classification", [("optimizer.schedule.decay_epochs", [])], "decay_epochs belong to"),
    ("classification", [("optimizer.schedule.kind", "cosine")], "decay_epochs belong to"),
    ("classification", [("optimizer.schedule.decay_epochs", [2, 1])], "[2.0, 1.0] must rise"),
    ("classification", [("training.evaluate_every", {})], "exactly one of epochs and steps"),
    ("classification", [("training.evaluate_every.steps", 3)], "exactly one of epochs and steps"),
    ("classification", [("training.steps", 3)], "exactly one of epochs and steps"),
    ("classification", [("training.epochs", None)], "exactly one of epochs and steps"),
    ("classification", [("training.accumulation", 9)], "global_batch (8)"),
    ("classification", [("cluster.gpus_per_worker", 1.5)], "gpus_per_worker (1.5)"),
    ("classification", [("cluster.gpus_per_worker", 0.5), ("cluster.workers", 2)], "gpus_per_worker (0.5)"),
    ("classification", [("cluster.storage", "s3://key:secret@bucket/runs")], "without credentials"),
    ("classification", [("cluster.min_workers", 2)], "min_workers (2)"),
    ("classification", [("data", yaml.safe_load(KINDS["detection"])["data"] | {"root": "r"})], "needs data.source"),
    ("detection", [("data.instance_masks", False)], "data.instance_masks must be true"),
    ("classification", [("cluster.workers", 3), ("training.accumulation", 4)], "(3 x 4 = 12)"),
]


def with_changes(kind: str, changes: list[Change]) -> dict[str, Any]:
    tree = base(kind)
    for dotted, value in changes:
        node = tree["stages"]["first"]
        *parents, key = dotted.split(".")
        for parent in parents:
            node = node[parent]
        node[key] = value
    return tree


def chains() -> list[tuple[dict[str, Any], str]]:
    """What the recipe as a whole is refused for."""
    stage = base("classification")["stages"]["first"]
    later = stage | {"model": stage["model"] | {"init": "stage:second"}}
    elsewhere = stage | {"tracking": {"uri": "http://elsewhere"}}
    return [
        ({"name": "r", "stages": {}}, "at least one stage"),
        ({"name": "r", "stages": {"first": later, "second": stage}}, "'stage:second', which is no earlier stage"),
        ({"name": "r", "stages": {"first": stage, "second": elsewhere}}, "must be the same in all stages"),
    ]


def raised_at(error: UserError) -> set[tuple[str, int]]:
    """File and line of the validators that refused."""
    cause = error.__context__
    assert isinstance(cause, ValidationError)
    found = set()
    for detail in cause.errors():
        trace = getattr(detail.get("ctx", {}).get("error"), "__traceback__", None)
        while trace is not None:
            found.add((Path(trace.tb_frame.f_code.co_filename).name, trace.tb_lineno))
            trace = trace.tb_next
    return found


def raises_of_validators() -> set[tuple[str, int]]:
    """File and line of every `raise` in the validators of every section."""
    found = set()
    for model in sections(Recipe, set()):
        decorators = model.__pydantic_decorators__
        for kind in ("field_validators", "model_validators"):
            for decorator in getattr(decorators, kind).values():
                function = inspect.unwrap(getattr(decorator.func, "__func__", decorator.func))
                lines, first = inspect.getsourcelines(function)
                tree = ast.parse(textwrap.dedent("".join(lines)))
                shift = first - 1
                found |= {
                    (Path(inspect.getfile(function)).name, node.lineno + shift)
                    for node in ast.walk(tree)
                    if isinstance(node, ast.Raise)
                }
        for kind in ("validators", "root_validators"):
            assert not getattr(decorators, kind), "a decorator of the old style has no case"
    return found


def test_every_validator_refuses_and_none_is_without_a_case(tmp_path: Path):
    reached = set()
    cases = [(with_changes(kind, changes), said) for kind, changes, said in VALIDATORS] + chains()
    for tree, said in cases:
        error = refusal(tree, tmp_path)
        assert said in str(error) and str(tmp_path / "r.yaml") in str(error)
        reached |= raised_at(error)
    written = raises_of_validators()
    assert len(written) >= 25
    assert written <= reached, f"no case reaches {sorted(written - reached)}"


# --- files that are no recipes ---

RUBBISH = {
    "nothing": b"",
    "zeros": bytes(100),
    "not text": b"\xff\xfe\x00\xd8",
    "a list": b"- a",
    "deep": b"[" * 5000,
    "deep mapping": b"{a: " * 5000,
    "deep lines": b"".join(b" " * n + b"a:\n" for n in range(500)),
    "aliases": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "merge": b"a: {x: 1}\nb: {<<: {x: 2}}\n",
    "tag": b"name: !!python/object/apply:os.system ['true']\n",
    "two documents": b"name: a\n---\nname: b\n",
    "key twice": b"name: a\nname: b\n",
    "key of a list": b"? [a, b]\n: 1\n",
    "huge number": b"name: " + b"9" * 10_000,
    "huge exponent": b"name: r\ntraining: {epochs: 1e999999}\n",
    "tab": b"name:\n\tx: 1\n",
    "half character": b'name: "\\ud800"\n',
    "escape": b"name: \x1b[2J\n",
    "zero character": b'name: r\ndata: {root: "a\\0b"}\n',
    "zero character in a key": b'"na\\0me": r\n',
    "byte order mark": b"\xef\xbb\xbf- a\n",
    "utf-16": "name: r".encode("utf-16"),
    "long line": b"name: " + b"x" * 1_000_000,
    "many keys": b"".join(b"k%d: 1\n" % n for n in range(3000)),
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_refused_quickly(name: str, tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_bytes(RUBBISH[name])
    begin = time.process_time()
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert time.process_time() - begin < LONGEST_S
    assert str(file) in str(caught.value)
    str(caught.value).encode()


def test_a_recipe_that_cannot_be_opened(tmp_path: Path):
    for file in (tmp_path, tmp_path / "no" / "r.yaml", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot read the recipe"):
            load_recipe(file)


# --- mutations ---

EXTREMES: list[Any] = [
    None, True, False, -1, 0, 1, 3, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 2**31, 2**63, 10**30, 10**400,
    "", " ", "x", "null", "1", "1e3", "stage:pretrain", "stage:", "models:/a@b", "timm:x", "../..", "/etc/passwd",
    "~root/x", "\0", "\x1b[2J", "\N{SNOWMAN}", "\N{GRINNING FACE}" * 50, "a" * 10_000, "é", "${HOME}", "{0}", "%s",
    "!tag", "*alias", "&a",
    [], [1, "a"], [[[[]]]], [None], [1] * 1000, {}, {"kind": "x"}, {"source": "coco"}, {"": 1}, {"a": {"b": {"c": {}}}},
]  # fmt: skip
KEYS = ["lr", "stages", "data", "task", "kind", "source", "classification", "mask_pairs", "0", "bool", "", "name",
        "__class__", "model_config", "\N{SNOWMAN}", "a.b", "steps", "epochs", "schedule"]  # fmt: skip


ODD_TEXT = [":", "\t", "\0", "{", "]", '"', "- ", "é", "\u2028", "\ud800", "&a ", "? "]


def places_in(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places_in(value, (*path, key))


def mutate(tree: Any, draw: random.Random) -> None:
    """One change somewhere in a recipe: gone, renamed, of another type, an extreme, moved or nested deeply."""
    places = list(places_in(tree))
    if not places:
        return
    *parents, key = draw.choice(places)
    node = tree
    for parent in parents:
        node = node[parent]
    action = draw.randrange(8)
    if action == 0:
        del node[key]
    elif action in (1, 2):
        node[key] = copy.deepcopy(draw.choice(EXTREMES))
    elif action == 3 and isinstance(node, dict):
        node[draw.choice([f"{key}x", str(key)[:-1], str(key).upper(), draw.choice(KEYS)])] = node.pop(key)
    elif action == 4 and isinstance(node, dict):
        node[draw.choice(KEYS)] = copy.deepcopy(node[key])
    elif action == 5:
        for _ in range(draw.choice([1, 3, 15, 30])):
            node[key] = {str(key): node[key]} if draw.random() < 0.5 else [node[key]]
    elif action == 6:
        other = draw.choice(places)
        value = tree
        for part in other:
            value = value[part]
        node[key] = copy.deepcopy(value)
    elif isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = draw.choice([-node[key], node[key] * 10**6, node[key] / 7, str(node[key]), [node[key]]])
    else:
        node[key] = str(node[key]) + draw.choice(["", "\n", "\0", "é", "/../..", " " * 20])


def mutate_text(text: str, draw: random.Random) -> str:
    """One change to the characters of a file."""
    at, length = draw.randrange(len(text)), draw.choice([0, 1, 5, 60])
    lines = text.splitlines(keepends=True)
    match draw.randrange(4):
        case 0:
            return (
                text[:at]
                + draw.choice([":", "\t", "\0", "{", "]", '"', "- ", "é", "\u2028", "\ud800", "&a ", "? "])
                + text[at + length :]
            )
        case 1:
            return text[:at]
        case 2:
            first, second = draw.randrange(len(lines)), draw.randrange(len(lines))
            lines[first], lines[second] = lines[second], lines[first]
            return "".join(lines)
        case _:
            line = draw.randrange(len(lines))
            return "".join([*lines[:line], " " * draw.randrange(1, 5), *lines[line:]])


def test_mutated_recipes_load_or_are_refused(tmp_path: Path):
    print(f"{FUZZED} recipes from seed {SEED}")
    shipped = [(path.read_text(), yaml.load(path.read_text(), yaml.CSafeLoader)) for path in SHIPPED]
    file = tmp_path / "r.yaml"
    refused, slowest = 0, 0.0
    for number in range(FUZZED):
        draw = random.Random(f"{SEED} {number}")
        text, tree = draw.choice(shipped)
        if draw.random() < 0.2:
            text = mutate_text(text, draw)
        else:
            tree = copy.deepcopy(tree)
            for _ in range(draw.randint(1, 3)):
                mutate(tree, draw)
            text = yaml.dump(tree, Dumper=Plain, allow_unicode=True)
        file.write_bytes(text.encode(errors="surrogatepass"))
        begin = time.process_time()
        try:
            load_recipe(file)
        except UserError as error:
            refused += 1
            assert str(file) in str(error), f"seed {SEED}, recipe {number}: {error}"
            str(error).encode()
        except Exception as error:
            raise AssertionError(f"seed {SEED}, recipe {number}: {error!r}\n{text}") from error
        slowest = max(slowest, time.process_time() - begin)
    print(f"{refused} refused, {FUZZED - refused} loaded, slowest {slowest:.3f} s")
    assert slowest < LONGEST_S
    assert 0.5 * FUZZED < refused < FUZZED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_recipe_is_refused(path: Path):
    assert load_recipe(path).name == path.stem
