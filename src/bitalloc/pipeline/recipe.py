"""The typed recipe that ``bitalloc run`` reads, one TOML file."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from bitalloc.errors import ConfigError
from bitalloc.files import AnyPath
from bitalloc.pipeline.recipe_errors import sentence
from bitalloc.pipeline.recipe_sections import (
    EngineSection,
    EvaluateSection,
    FinetuneSection,
    FloatSection,
    LevelSection,
    MeasureSection,
    QuantizerSection,
    SourceSection,
    SpaceSection,
    SupernetSection,
)
from bitalloc.pipeline.recipe_types import EntryPoint, Section

_OWN_FOLDERS = ("checkpoints", "source", "tracking")
_OWN_FILES = (".json", ".jsonl", ".safetensors", ".onnx", ".svg", ".png")
"""What a run folder has beside the folders of its levels."""


class Recipe(Section):
    """Everything that decides a run's result.

    Attributes:
        name: of the experiment.
        model: ``package.module:function`` that returns the float model.
        model_options: keyword arguments of that function.
        data: ``package.module:function`` that is called with ``batch_size``, ``seed`` and ``root`` and returns
            :class:`bitalloc.data.Splits`.
        data_options: further keyword arguments of that function.
        input_shape: shape of one input without the batch; lets ``--dry-run`` work without the data. By default the data's example.
        batch_size: images a step.
        calibration_batches: batches that initialise the activation quantizers.
        seed: of everything random.
        tables: name of a budget to the file of its costs, see :func:`bitalloc.costs.load_table`; relative to the recipe's folder.
        float: the float model (key ``float`` in the file).
        supernet: searches by a supernet; by default the joint training of ``measure`` scores the widths.
        source: the dataset that the widths are scored on; by default the recipe's own.
    """

    name: str = Field(min_length=1)
    model: EntryPoint
    model_options: dict[str, Any] = Field(default_factory=dict)
    data: EntryPoint
    data_options: dict[str, Any] = Field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    batch_size: int = Field(default=128, gt=0)
    calibration_batches: int = Field(default=8, gt=0)
    seed: int = Field(default=0, ge=0)
    tables: dict[str, str] = Field(default_factory=dict)
    float_: FloatSection = Field(default_factory=FloatSection, alias="float")
    space: SpaceSection = Field(default_factory=SpaceSection)
    quantizers: QuantizerSection = Field(default_factory=QuantizerSection)
    measure: MeasureSection = Field(default_factory=MeasureSection)
    levels: tuple[LevelSection, ...] = Field(min_length=1)
    finetune: FinetuneSection = Field(default_factory=FinetuneSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    engine: EngineSection = Field(default_factory=EngineSection)
    supernet: SupernetSection | None = None
    source: SourceSection | None = None


def load_recipe(path: AnyPath, overrides: dict[str, Any] | None = None) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path: a TOML file.
        overrides: top-level keys that replace the file's, such as ``{"seed": 1}``.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown or a value is not allowed; it names file and key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: expected a recipe (a TOML file).") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}.") from error
    try:
        recipe = Recipe.model_validate(values | (overrides or {}))
    except ValidationError as error:
        raise ConfigError(f"{path}: {sentence(error, _keys())}") from error
    _check_scoring(path, recipe)
    names = [level.name for level in recipe.levels]
    taken = sorted(name for name in names if name in _OWN_FOLDERS or Path(name).suffix in _OWN_FILES)
    if taken:
        raise ConfigError(f"{path}: no level can be named {', '.join(taken)}: a run folder has files of its own by such names.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{path}: two levels are named {', '.join(repeated)}; give each its own name.")
    return recipe.model_copy(update={"tables": {name: str(Path(path).parent / file) for name, file in recipe.tables.items()}})


def _check_scoring(path: AnyPath, recipe: Recipe) -> None:
    """Raises ConfigError unless the widths are scored in one way, and the fine-tuning starts from what there is."""
    if recipe.supernet is not None and "measure" in recipe.model_fields_set:
        raise ConfigError(f"{path}: [measure] and [supernet] are two ways to score the widths: keep one of them.")
    other = "[supernet]" if recipe.supernet is not None else "[source]" if recipe.source is not None else ""
    if other and recipe.finetune.start == "joint":
        raise ConfigError(
            f"{path}: finetune.start = 'joint' needs the joint training on the recipe's own data, which {other} replaces: "
            "start from 'float'."
        )


def _keys() -> list[str]:
    """Every key of a recipe, of whatever section."""
    return sorted({field.alias or name for section in Section.__subclasses__() for name, field in section.model_fields.items()})
