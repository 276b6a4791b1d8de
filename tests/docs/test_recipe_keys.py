"""The page about recipes names every key that a recipe can have."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from bitalloc.pipeline import recipe

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = [value for value in vars(recipe).values() if isinstance(value, type) and issubclass(value, BaseModel) and value.model_fields]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_is_described(section: type[BaseModel]) -> None:
    named = set(re.findall(r"`\[*(\w+)\]*`", PAGE))
    keys = {field.alias or name for name, field in section.model_fields.items()}
    assert keys - named == set()
