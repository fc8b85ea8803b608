"""YAML files as frozen objects: the types of their fields, and a line for each that cannot be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from colq_utils.base.errors import ColqError

#: Keys that may not stand in a file, and where they come from.
GIVEN = {"name": "it is the name of the file", "output": "the folder is given with --output"}


def each_once(names: Sequence[str]) -> Sequence[str]:
    """`names`, if none is there twice; else a ValueError."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is named twice; each may be named once")
    return names


Once = AfterValidator(each_once)
Names = Annotated[tuple[str, ...], Once]
Count = Annotated[int, Field(gt=0)]
#: A part of the names of files and folders.
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def parse(kind: type[BaseModel], path: Path, **given):
    """A YAML file as a `kind`, with the fields `given`, which may not stand in it.

    Raises:
        ColqError: not valid YAML, no mapping, a key or value that cannot be: a line for each.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ColqError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ColqError(f"{path.name} holds a {type(fields).__name__}: write it as `key: value` lines")
    for key in given.keys() & fields.keys():
        raise ColqError(f"{path.name}: leave out `{key}`; {GIVEN[key]}")
    try:
        return kind.model_validate(fields | given)
    except ValidationError as refused:
        errors = [e for e in refused.errors() if e["type"] != "default_factory_not_called"]
    raise ColqError("\n".join(f"{path.name}: {_told(error)}" for error in errors))


def _told(error: dict) -> str:
    """Field, what is allowed and, where it is a single value, what was given."""
    place = ".".join(map(str, error["loc"])) or "file"
    given = f" (it is {error['input']!r})" if isinstance(error["input"], (str, int, float)) else ""
    return f"{place}: {error['msg'].removeprefix('Value error, ')}{given}"
