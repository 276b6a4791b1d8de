"""Where ``bitalloc describe`` gets a model from: an entry point, a library of models, or an exported programme."""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from bitalloc.errors import BitallocError, ConfigError, DescribeError, FileError
from bitalloc.layers import Description
from bitalloc.pipeline.entry_points import call_entry_point
from bitalloc.wrap.describe import describe
from bitalloc.wrap.exported import describe_exported

_Build = Callable[[Callable[[], nn.Module]], nn.Module]

_INPUT: Final = re.compile(r"(?:(?P<name>\w+)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")
_IMAGE: Final = (3, 224, 224)
_TOKENS: Final = 128
_FORMS: Final = "a recipe.toml, a file.pt2, package.module:function, torchvision:NAME, timm:NAME or transformers:TYPE"


def describe_target(target: str, inputs: Sequence[str] = ()) -> Description:
    """The description of what ``target`` names.

    Args:
        target: one of

            - ``file.pt2``: written by ``torch.export.save``; it holds its own example input.
            - ``package.module:function``: the function is called without arguments and returns the model, or the model and an example
              input for :func:`~bitalloc.wrap.describe.describe`.
            - ``torchvision:NAME``, ``timm:NAME``: a model of that library, with random weights.
            - ``transformers:TYPE``: the base model of that type (``bert``) in its standard configuration, or that of a folder with a
              ``config.json``.
        inputs: example inputs such as ``1x3x224x224``, ``1x16:int64`` or, by keyword, ``input_ids=1x16:int64``; they replace those of
            the target.

    Raises:
        ConfigError: the target or an input cannot be understood, a package is not installed, or it has no such model.
        DescribeError: the model cannot be described.
    """
    example = _example(inputs)
    if target.endswith(".pt2"):
        return describe_exported(_program(Path(target)), example)
    library, _, name = target.partition(":")
    if not name:
        raise ConfigError(f"{target!r} names no model: expected {_FORMS}.")
    if library in _LIBRARIES:
        model, own = _LIBRARIES[library](name, _on_meta)
    else:
        made = call_entry_point(target, "model", {})
        model, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{target} gave a {type(model).__name__}, expected a torch.nn.Module or (module, example input).")
    if example is None and own is None:
        raise ConfigError(f"{target} has no example input: give its shape with --input, for example --input 1x3x224x224.")
    try:
        return describe(model, own if example is None else example)
    except DescribeError as error:
        if library not in _LIBRARIES or "meta" not in str(error.__cause__):
            raise
    # Detectors and the like ask for numbers while they run, which the meta device does not have.
    model, _ = _LIBRARIES[library](name, lambda make: make())
    return describe(model, own if example is None else example)


def parse_input(text: str) -> tuple[str, Tensor]:
    """``[name=]1x3x224x224[:dtype]`` as name (empty without one) and a tensor of zeros. Raises ConfigError for anything else."""
    match = _INPUT.fullmatch(text.strip())
    dtype = getattr(torch, match["dtype"] or "float32", None) if match else None
    if match is None or not isinstance(dtype, torch.dtype):
        raise ConfigError(f"--input {text!r} is no input: write it like 1x3x224x224, 1x16:int64 or input_ids=1x16:int64.")
    return match["name"] or "", torch.zeros([int(size) for size in match["shape"].split("x")], dtype=dtype)


def _example(inputs: Sequence[str]) -> Any:
    parsed = [parse_input(text) for text in inputs]
    if not parsed:
        return None
    named = {name: tensor for name, tensor in parsed if name}
    if named and len(named) < len(parsed):
        raise ConfigError("--input: give all inputs by name, or all by position, each name once.")
    return named or tuple(tensor for _, tensor in parsed)


def _program(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise FileError(f"{path} is not there: expected a programme that torch.export.save wrote.")
    try:
        return torch.export.load(path)
    except Exception as error:  # whatever a damaged archive makes the reader raise
        raise FileError(f"{path} is no programme that torch.export.save wrote ({type(error).__name__}: {error}).") from error


def _from_torchvision(name: str, build: _Build) -> tuple[nn.Module, Any]:
    models = _library("torchvision", "torchvision.models")
    if name not in models.list_models():
        raise ConfigError(f"torchvision has no model {name!r}; torchvision.models.list_models() names them.")
    options = {"weights": None} | ({"weights_backbone": None} if name in models.list_models(module=models.detection) else {})
    side = 299 if name == "inception_v3" else 224
    return build(lambda: models.get_model(name, **options)), torch.zeros(1, 3, side, side)


def _from_timm(name: str, build: _Build) -> tuple[nn.Module, Any]:
    timm = _library("timm", "timm")
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}; timm.list_models() names them.")
    model = build(lambda: timm.create_model(name, pretrained=False))
    size = getattr(model, "pretrained_cfg", {}).get("input_size", _IMAGE)
    return model, torch.zeros(1, *size)


def _from_transformers(name: str, build: _Build) -> tuple[nn.Module, Any]:
    transformers = _library("transformers", "transformers")
    try:
        local = Path(name, "config.json").is_file()
        config = transformers.AutoConfig.from_pretrained(name) if local else transformers.AutoConfig.for_model(name)
        model = build(lambda: transformers.AutoModel.from_config(config))
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(f"transformers has no model type {name!r}, nor is it a folder with a config.json ({error}).") from error
    except ImportError as error:  # it imports the parts of a model late, and torchvision with them where that is installed
        raise ConfigError(f"transformers cannot import what {name!r} needs ({error}): check the packages that it uses.") from error
    return model, _transformers_example(model, config)


def _transformers_example(model: nn.Module, config: Any) -> Mapping[str, Tensor] | None:
    """Zeros for the model's main input, where its configuration tells the shape."""
    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        return {main: torch.zeros(1, getattr(config, "num_channels", 3), config.image_size, config.image_size)}
    if main != "input_ids":
        return None
    tokens = torch.zeros(1, _TOKENS, dtype=torch.int64)
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if getattr(config, "is_encoder_decoder", False) else {})


def _on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """The model without memory for its weights, where its constructor allows that; a description needs only shapes."""
    try:
        with torch.device("meta"):
            return make()
    except BitallocError:
        raise
    except Exception:  # some constructors read values back, which the meta device has not
        return make()


def _library(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{name}: the package is not installed ({error}): install it with pip install {name}.") from error
    except RuntimeError as error:  # a torchvision built for another torch
        raise ConfigError(f"{name} cannot be imported beside this torch ({error}): install the build that belongs to it.") from error


_LIBRARIES: Final[Mapping[str, Callable[[str, _Build], tuple[nn.Module, Any]]]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "transformers": _from_transformers,
}
