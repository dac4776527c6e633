"""The user's wish: which implementation of each op a model should have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue

from kernelkit.containers.choice import AUTO, KernelChoice
from kernelkit.containers.config_schema import ops_schema
from kernelkit.containers.legacy import migrate
from kernelkit.containers.presets import PRESETS
from kernelkit.containers.yaml_file import YamlFile
from kernelkit.errors import Problem, did_you_mean, listing, validation_error
from kernelkit.registry import KernelRegistry, default_registry


class OpsConfig(BaseModel):
    """The implementation of each op, by name, immutable and equal by value.

    Every op that the registry knows is a key, those of plug-ins included::

        OpsConfig(rms_norm="liger", attention="sdpa", swiglu_mlp={"impl": "compile", "dynamic": True})

    A key holds a name, ``auto``, or a mapping of ``impl`` and that kernel's own options, and reads back as a
    :class:`KernelChoice`. Ops that are not named keep what stock transformers would use.

    Attributes:
        preset: a bundle of names, over which the named ops have precedence.
        allow_unused: naming an op that the model does not have is a warning instead of an error.

    Raises:
        ValidationError: listing every mistake at once, each with its loc.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    preset: str | None = None
    allow_unused: StrictBool = False

    __pydantic_extra__: dict[str, Any]
    _file: YamlFile | None = PrivateAttr(default=None)

    # --- reading ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, source: Any = None, *, registry: KernelRegistry | None = None) -> OpsConfig:
        """A config from whatever a user has: a config, a mapping, the path of a YAML file, or None for the defaults.

        Args:
            source: the above.
            registry: whose ops and implementations are the valid names; the default registry unless given.

        Raises:
            ValidationError: for every mistake; from a file, each with ``file:line:column``.
        """
        if isinstance(source, (str, Path)):
            return cls.from_yaml(source, registry=registry)
        if isinstance(source, OpsConfig) and registry is not None:
            file, source = source._file, {**source.model_dump(), **source.choices}
            config = cls.model_validate(source, context={"registry": registry})
            config._file = file
            return config
        return cls.model_validate({} if source is None else source, context={"registry": registry})

    @classmethod
    def from_yaml(cls, path: str | Path, *, registry: KernelRegistry | None = None) -> OpsConfig:
        """A config from a YAML file; mistakes are reported with ``file:line:column``."""
        file = YamlFile.read(path, cls.__name__)
        try:
            config = cls.model_validate(file.data, context={"registry": registry})
        except ValidationError as error:
            raise file.locate(error) from None
        config._file = file
        return config

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            return handler(data)
        registry = (info.context or {}).get("registry") or default_registry()
        named, written, problems = migrate(data)
        choices: dict[str, KernelChoice] = {}
        for key in [key for key in named if key not in cls.model_fields]:
            choice, faults = read_choice(key, named.pop(key), written.get(key, key), registry)
            problems += faults
            if choice is not None:
                choices[key] = choice
        try:
            config = handler(named)
        except ValidationError as error:
            problems += [
                Problem(line["loc"], line["type"], line["msg"], line["input"])
                for line in error.errors(include_url=False)
            ]
        if problems:
            raise validation_error(cls.__name__, problems)
        object.__setattr__(config, "__pydantic_extra__", _ReadOnlyDict(choices))
        return config

    @field_validator("preset")
    @classmethod
    def _is_a_preset(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}.{did_you_mean(preset, PRESETS)} Known: {listing(PRESETS)}.")
        return preset

    # --- asking ----------------------------------------------------------------------------------------------------

    @property
    def choices(self) -> Mapping[str, KernelChoice]:
        """The ops that were named, each with its choice."""
        return self.__pydantic_extra__

    @property
    def preset_members(self) -> Mapping[str, str]:
        """Impl by op of the preset; empty without one."""
        return PRESETS[self.preset] if self.preset else {}

    def locate(self, error: ValidationError) -> ValidationError:
        """``error``, found later than reading, with file, line and column where this config came from a file."""
        return error if self._file is None else self._file.locate(error)

    # --- writing ---------------------------------------------------------------------------------------------------

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        settings = {"preset": self.preset} if self.preset else {}
        unused = {"allow_unused": True} if self.allow_unused else {}
        return {**settings, **{op: choice.plain() for op, choice in self.choices.items()}, **unused}

    def to_yaml(self) -> str:
        """This config as YAML, which ``from_yaml`` reads back to an equal config."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A config with some keys changed, validated like a new one."""
        return type(self).model_validate({**self.model_dump(), **(update or {})})

    def __hash__(self) -> int:
        return hash((self.preset, self.allow_unused, frozenset(self.choices.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpsConfig) and self.model_dump() == other.model_dump()

    def __repr_args__(self) -> Any:
        return self.model_dump().items()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return ops_schema(default_registry(), title=cls.__name__, description=(cls.__doc__ or "").partition("\n")[0])


def read_choice(
    op: Any, value: Any, key: Any, registry: KernelRegistry
) -> tuple[KernelChoice | None, list[Problem]]:
    """The choice that ``op: value`` makes, or what is wrong with it.

    Args:
        op: our name of the op.
        value: a name, a mapping of ``impl`` and options, or a choice.
        key: the key that the user wrote, at which problems point.
        registry: the valid names.
    """
    if isinstance(value, KernelChoice):
        key, value = value.key or key, value.plain()
    if op not in registry.ops:
        known = [*registry.ops, *OpsConfig.model_fields]
        message = f"unknown op {op!r}.{did_you_mean(op, known)} Known: {listing(known)}."
        return None, [Problem((key if isinstance(key, (str, int)) else repr(key),), "unknown_op", message, value)]
    options = dict(value) if isinstance(value, Mapping) else {}
    impl = options.pop("impl", None) if isinstance(value, Mapping) else value
    if not isinstance(impl, str):
        message = f"an implementation is a name, or a mapping with the key 'impl'; valid: {_valid(op, registry)}"
        return None, [Problem((key,), "impl_type", message, value)]
    impls = [*registry.impls(op), AUTO]
    if impl not in impls:
        message = f"{op} has no implementation {impl!r}.{did_you_mean(impl, impls)} Valid: {_valid(op, registry)}."
        return None, [Problem((key,), "unknown_impl", message, impl)]
    model = None if impl == AUTO else registry.list(op, name=impl)[0].options
    return _with_options(op, impl, options, key, model)


def _with_options(
    op: str, impl: str, options: dict[Any, Any], key: str, model: type[BaseModel] | None
) -> tuple[KernelChoice | None, list[Problem]]:
    if model is None:
        message = f"{op}: {impl} takes no options"
        faults = [Problem((key, name), "unknown_option", message, given) for name, given in options.items()]
        return (None, faults) if faults else (KernelChoice.of(impl, {}, key), [])
    try:
        read = model.model_validate(options)
    except ValidationError as error:
        hint = f"; options of {op}: {impl} are {listing(model.model_fields)}"
        return None, [
            Problem((key, *line["loc"]), line["type"], line["msg"] + hint, line["input"])
            for line in error.errors(include_url=False)
        ]
    return KernelChoice.of(impl, read.model_dump(mode="json", exclude_unset=True), key), []


def _valid(op: str, registry: KernelRegistry) -> str:
    return listing([*registry.impls(op), AUTO])


class _ReadOnlyDict(dict[str, KernelChoice]):
    """A dict that refuses to change; unlike a mapping proxy it pickles and copies."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("an OpsConfig is immutable; use config.model_copy(update={...})")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # type: ignore[assignment]  # all of them refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)
