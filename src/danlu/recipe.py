"""Recipes: YAML that holds differences, made into typed settings.

In:  a recipe's name or path, overrides, and the sections that exist (given by ``pipeline``).
Out: a ``Recipe``: one frozen, validated ``Settings`` object per section, and their JSON form.
Left out: any knowledge of what the sections mean; defaults live beside the stage that they configure.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from danlu.errors import UserError, nearest, unknown


class Settings(BaseModel):
    """Base of every section: frozen, typed, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    def reads(self) -> dict[str, Path]:
        """Files and folders of the user's that the section names: when they change, the stage runs again."""
        return {}

    def check_packages(self) -> None:
        """Refuse, before the first stage, what this machine does not have.

        Raises:
            UserError: a package that an option needs is not installed.
        """

    def written(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What of the section goes to disk, given its settings as plain data: all of it, unless it holds a secret."""
        return dict(said)


_Section = TypeVar("_Section", bound=Settings)

# What other tools call a setting -> what it is called here, the first of these that a section has.
_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",), "actor_learning_rate": ("lr",), "critic_learning_rate": ("critic_lr",),
    "per_device_train_batch_size": ("micro_batch", "batch_size"),
    "micro_train_batch_size": ("micro_batch",), "train_batch_size": ("batch_size",),
    "rollout_batch_size": ("batch_size",), "num_train_epochs": ("epochs",), "num_ppo_epochs": ("epochs",),
    "max_steps": ("steps", "iterations"), "warmup_steps": ("warmup",), "lr_scheduler_type": ("schedule",),
    "max_grad_norm": ("grad_clip", "clip"), "cliprange_value": ("value_clip",),
    "save_steps": ("save_every", "probe_every"), "eval_steps": ("eval_every", "probe_every"),
    "logging_steps": ("log_every",), "save_total_limit": ("checkpoints",),
    "beta": ("kl_coefficient",), "kl_coef": ("kl_coefficient",), "init_kl_coef": ("kl_coefficient",),
    "num_generations": ("group_size", "n"), "max_completion_length": ("max_new_tokens",),
    "response_length": ("max_new_tokens",), "max_length": ("seq_len",), "block_size": ("seq_len",),
    "r": ("rank",), "lora_alpha": ("alpha",), "lora_dropout": ("dropout",), "target_modules": ("targets",),
    "load_in_4bit": ("base_bits",), "hidden_size": ("d_model",), "n_embd": ("d_model",),
    "intermediate_size": ("d_ff",), "num_hidden_layers": ("n_layers",), "num_attention_heads": ("n_heads",),
    "num_key_value_heads": ("n_kv_heads",), "max_position_embeddings": ("max_seq_len",),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    Attributes:
        name: the recipe's name; the run directory is named after it by default.
        sections: section name -> validated settings, every section present.
        text: the YAML of the differences as the user gave them, overrides merged in, without secrets.
    """

    name: str
    sections: Mapping[str, Settings]
    text: str

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, as plain JSON data, without secrets."""
        return {name: section.written(section.model_dump(mode="json")) for name, section in self.sections.items()}


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with danlu."""
    folder = resources.files("danlu") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(
    name: str,
    overrides: Sequence[str | Mapping[str, Any]],
    sections: Mapping[str, type[Settings]],
    shortcuts: Mapping[str, str],
    paths: Sequence[str] = (),
) -> Recipe:
    """Read a recipe, apply ``extends`` and overrides, and validate it.

    Args:
        name: a bundled recipe's name, or the path of a YAML file.
        overrides: ``section.key=value``, ``shortcut=value`` or ``section={...}`` strings, whose value is read as YAML;
            or what a recipe file would hold, as a mapping, in which paths may be ``Path``.
        sections: section name -> settings class.
        shortcuts: top-level key -> the ``section.key`` it stands for, such as ``base`` for ``pretrain.base``.
            ``extends`` is the only other top-level key.
        paths: ``section.key`` of every setting that may name a file of the user's: ``~`` in it is the home directory.

    Raises:
        UserError: unknown recipe, section or key (naming the nearest valid one), or a value of the wrong type.
    """
    data = _read(name, shortcuts, seen=())
    for override in overrides:
        said = _parse_override(override, shortcuts) if isinstance(override, str) else _said(_plain(override))
        _merge(data, _spell_out(said, shortcuts))
    _expand_home(data, paths)
    for key in data:
        if key not in sections:
            raise unknown("section", key, [*sections, *shortcuts, "extends"], f"recipe '{name}'")
    built = {key: _validate(key, cls, data.get(key, {}), name) for key, cls in sections.items()}
    stem = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    written = {key: built[key].written(said) for key, said in data.items()}
    return Recipe(stem, built, yaml.safe_dump(written, allow_unicode=True, sort_keys=False))


def load_section(path: Path, overrides: Sequence[str], name: str, cls: type[_Section]) -> _Section:
    """Settings that belong to no recipe: a YAML file of their keys, which may be missing, and overrides.

    Args:
        path: the file.
        overrides: ``key=value`` strings, whose value is read as YAML.
        name: what the settings are called in errors.
        cls: their class.

    Raises:
        UserError: the file is no mapping, an unknown key (naming the nearest), or a value of the wrong type.
    """
    data = _read(str(path), {}, seen=()) if path.is_file() else {}
    for override in overrides:
        _merge(data, _parse_override(f"{name}.{override}", {})[name])
    return _validate(name, cls, data, str(path))


def json_schema(sections: Mapping[str, type[Settings]], shortcuts: Mapping[str, str]) -> dict[str, Any]:
    """JSON Schema of a recipe file, for editors."""
    properties: dict[str, Any] = {"extends": {"type": "string", "description": "recipe that this one differs from"}}
    properties |= {short: {"description": f"the same as {long}"} for short, long in shortcuts.items()}
    definitions: dict[str, Any] = {}
    for key, cls in sections.items():
        schema = cls.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(schema.pop("$defs", {}))
        properties[key] = schema
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "danlu recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "$defs": definitions,
    }


def _read(
    name: str, shortcuts: Mapping[str, str], seen: tuple[str, ...], relative_to: Path | None = None
) -> dict[str, Any]:
    """The merged differences of a recipe and everything it extends, shortcuts spelt out in each before they meet."""
    if name in seen:
        raise UserError(f"recipe '{name}' extends itself ({' -> '.join((*seen, name))}); remove one 'extends'")
    path = _find(os.path.expanduser(name), relative_to)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"recipe {path} must be a mapping of sections, not {type(data).__name__}")
    parent = data.pop("extends", None)
    data = _spell_out(_said(data), shortcuts)
    if parent is None:
        return data
    merged = _read(str(parent), shortcuts, (*seen, name), path.parent)
    _merge(merged, data)
    return merged


def _find(name: str, relative_to: Path | None) -> Path:
    if name.endswith((".yaml", ".yml")):
        candidates = [Path(name)] if relative_to is None else [relative_to / name, Path(name)]
        for path in candidates:
            if path.is_file():
                return path
        raise UserError(f"no recipe file at {candidates[0]}; bundled recipes: {', '.join(bundled_recipes())}")
    path = Path(str(resources.files("danlu") / "recipes" / f"{name}.yaml"))
    if not path.is_file():
        raise unknown("recipe", name, bundled_recipes())
    return path


def _merge(base: dict[str, Any], difference: Mapping[str, Any]) -> None:
    """Merge ``difference`` into ``base`` in place; mappings merge, everything else replaces."""
    for key, value in difference.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _said(data: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that say something: an empty one, which YAML reads as None, does not."""
    return {key: value for key, value in data.items() if value is not None}


def _spell_out(data: dict[str, Any], shortcuts: Mapping[str, str]) -> dict[str, Any]:
    """Replace top-level shortcuts by the section keys they stand for."""
    for short in [key for key in data if key in shortcuts]:
        section, _, key = shortcuts[short].partition(".")
        _merge(data, {section: {key: data.pop(short)}})
    return data


def _expand_home(data: dict[str, Any], paths: Sequence[str]) -> None:
    """Replace ``~`` in place where a shell would have: in YAML, and behind the ``=`` of an override, it does not."""
    for section, _, key in (path.partition(".") for path in paths):
        said = data.get(section)
        if isinstance(said, dict) and isinstance(said.get(key), str):
            said[key] = os.path.expanduser(said[key])


def _parse_override(text: str, shortcuts: Mapping[str, str]) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    said = f"{key}=..." if separator else text  # not the value: it may hold a password
    short = len(parts) == 1 and parts[0] not in shortcuts and not value.lstrip().startswith("{")
    if not separator or not all(parts) or short:
        raise UserError(f"override '{said}' is not of the form section.key=value")
    try:
        nested: Any = yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError as error:
        raise UserError(f"override '{said}' has a value that is not valid YAML") from error
    for part in reversed(parts):
        nested = {part: nested}
    return dict(nested)


def _plain(value: Any, where: str = "") -> Any:
    """A value from Python as YAML would give it, in memory of its own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where}.{key}".lstrip(".")) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (str, bool, int, float):  # not numpy's, which YAML cannot write
        return value
    raise UserError(f"{where} is of type {type(value).__name__}; a recipe holds text, paths, numbers, lists, mappings")


def _validate(section: str, cls: type[_Section], data: Any, recipe: str) -> _Section:
    if not isinstance(data, Mapping):
        raise UserError(f"section '{section}' of recipe '{recipe}' must be a mapping of keys, not '{data}'")
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(_explain(section, cls, problem) for problem in error.errors())
        raise UserError(f"recipe '{recipe}': {problems}") from None


def nearest_key(name: str, valid: Iterable[str]) -> str:
    """``nearest`` for keys of settings, which people also know from other tools by other names."""
    keys = {*valid}
    ours = [key for key in _ELSEWHERE.get(name, ()) if key in keys]
    return f"; did you mean '{ours[0]}'?" if ours else nearest(name, keys)


_WANTED = {  # in fewer words than pydantic's
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "bool_parsing": "true or false",
    "bool_type": "true or false", "string_type": "a text", "list_type": "a list", "dict_type": "a mapping",
}  # fmt: skip


def _explain(section: str, cls: type[Settings], problem: Any) -> str:
    """One pydantic problem as a sentence with the dotted key."""
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join([section, *path])
    if problem["type"] == "extra_forbidden":
        owner: Any = cls
        for part in path[:-1]:
            field = owner.model_fields.get(part) if hasattr(owner, "model_fields") else None
            owner = field.annotation if field is not None else owner
            # Of a list of sections, the section that its entries are.
            owner = next((inner for inner in get_args(owner) if hasattr(inner, "model_fields")), owner)
        valid = getattr(owner, "model_fields", {})
        return f"unknown key '{dotted}'{nearest_key(path[-1], valid)}"
    wanted = _WANTED.get(problem["type"])
    if wanted:
        return f"{dotted} must be {wanted}, not {problem['input']!r}"
    said = problem["msg"].removeprefix("Value error, ")
    got = f" (got {problem['input']!r})" if not isinstance(problem["input"], Mapping) else ""  # a section is long
    return f"{dotted}: {said}{got}"
