"""The user's wish: which implementation of each op a model should have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SkipValidation,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from kernelkit.containers.choice import KernelChoice
from kernelkit.containers.choice_reader import read_choice
from kernelkit.containers.config_schema import ops_schema
from kernelkit.containers.legacy import migrate
from kernelkit.containers.override_rules import KEY, Overrides, plain_overrides, read_overrides
from kernelkit.containers.presets import PRESET_NAMES
from kernelkit.containers.yaml_file import YamlFile, error_in_file
from kernelkit.errors import problems_in, unknown, validation_error
from kernelkit.frozen import FrozenDict
from kernelkit.registry import KernelRegistry, default_registry


class OpsConfig(BaseModel):
    """The implementation of each op, by name, immutable and equal by value.

    Every op that the registry knows is a key, those of plug-ins included::

        OpsConfig(rms_norm="liger", attention={"impl": "flash_attention_2", "deterministic": True})

    A key holds a name, ``auto``, or a mapping of ``impl`` and that kernel's own options, and reads back as a
    :class:`KernelChoice`. Ops that are not named keep what stock transformers would use.

    Attributes:
        preset: a bundle of names, over which the named ops have precedence.
        allow_unused: naming an op that the model does not have is a warning instead of an error.
        overrides: other choices for some modules, by pattern of their paths and op; see :class:`PathPattern`. They have
            precedence over all else.
        verify: ``bind`` compares every kernel with eager when a model is built.

    Raises:
        ValidationError: listing every mistake at once, each with its loc.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    preset: str | None = None
    allow_unused: StrictBool = False
    # Read together with the ops, since it names some; what the handler is given has been read.
    overrides: Annotated[Overrides, SkipValidation] = FrozenDict()
    verify: Literal["bind"] | None = None

    __pydantic_extra__: dict[str, Any]
    # The keys in the order in which they were written, so that YAML comes back as it was.
    _keys: tuple[str, ...] = PrivateAttr(default=())
    _file: YamlFile | None = PrivateAttr(default=None)

    @classmethod
    def load(cls, source: Any = None, *, registry: KernelRegistry | None = None) -> Self:
        """A config from whatever a user has: a config, a mapping, the path of a YAML file, or None for the defaults.

        Args:
            source: the above.
            registry: whose ops and implementations are the valid names; the default registry unless given.

        Raises:
            ValidationError: for every mistake; from a file, each with ``file:line:column``.
        """
        if isinstance(source, (str, Path)):
            return cls.from_yaml(source, registry=registry)
        if isinstance(source, OpsConfig):
            # Its names were valid in the registry that it was read with, which may have been another.
            overrides = {KEY: source.overrides} if source.overrides else {}
            return cls._from({**source.model_dump(), **source.choices, **overrides}, registry, source._file)
        return cls._from({} if source is None else source, registry, None)

    @classmethod
    def from_yaml(cls, path: str | Path, *, registry: KernelRegistry | None = None) -> Self:
        """A config from a YAML file; mistakes are reported with ``file:line:column``."""
        return cls.from_file(YamlFile.read(path, cls.__name__), registry=registry)

    @classmethod
    def from_file(cls, file: YamlFile, *, registry: KernelRegistry | None = None) -> Self:
        """A config from a file that was read already."""
        return cls._from(file.data, registry, file)

    @classmethod
    def _from(cls, data: Any, registry: KernelRegistry | None, file: YamlFile | None) -> Self:
        context = {"registry": registry, "file": file}
        if file is None:
            return cls.model_validate(data, context=context)
        problems = list(file.duplicates)
        try:
            config = cls.model_validate(data, context=context)
        except ValidationError as error:
            problems += map(file.located, problems_in(error))
        if problems:
            raise error_in_file(cls.__name__, problems)
        return config

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(data, cls) or not isinstance(data, Mapping):
            return handler(data)
        context = info.context if isinstance(info.context, Mapping) else {}
        registry, file = context.get("registry"), context.get("file")
        if not isinstance(registry, KernelRegistry):  # none, or a context that is not ours
            registry = default_registry()
        file = file if isinstance(file, YamlFile) else None
        place = file.place if file else lambda *_: ""
        named, written, problems = migrate(data, place)
        choices: dict[str, KernelChoice] = {}
        for op in [key for key in named if key not in cls.model_fields]:
            choice, faults = read_choice(op, named[op], written.get(op, op), registry, cls.model_fields)
            problems += faults
            if choice is not None:
                choices[registry.op(op).name] = choice
        settings = {key: value for key, value in named.items() if key in cls.model_fields}
        if KEY in settings:
            settings[KEY], faults = read_overrides(settings[KEY], registry, place)
            problems += faults
        try:
            config = handler(settings)
        except ValidationError as error:
            problems += problems_in(error)
        if problems:
            raise validation_error(cls.__name__, problems)
        object.__setattr__(config, "__pydantic_extra__", FrozenDict(choices))
        config._keys, config._file = tuple(named), file
        return config

    @field_validator("preset")
    @classmethod
    def _is_a_preset(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESET_NAMES:
            raise PydanticCustomError("unknown_preset", unknown("preset", preset, PRESET_NAMES))
        return preset

    @property
    def choices(self) -> Mapping[str, KernelChoice]:
        """The ops that were named, each with its choice."""
        return self.__pydantic_extra__

    def place(self, *loc: str | int) -> str:
        """``"file:line:column: "`` of a loc, for the start of a message; empty where this config is not from a file."""
        return self._file.place(*loc) if self._file else ""

    def locate(self, error: ValidationError) -> ValidationError:
        """``error``, found later than reading, with file, line and column where this config came from a file."""
        return self._file.locate(error) if self._file else error

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"preset": self.preset, "allow_unused": self.allow_unused, "verify": self.verify}
        plain[KEY] = plain_overrides(self.overrides)
        plain |= {op: choice.plain() for op, choice in self.choices.items()}
        return {key: plain[key] for key in self._keys}

    def to_yaml(self) -> str:
        """This config as YAML, which ``from_yaml`` reads back to an equal config."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False, registry: KernelRegistry | None = None
    ) -> Self:
        """A config with some keys changed, validated like a new one; ``registry`` as in :meth:`load`."""
        return self.load({**self.model_dump(), **update}, registry=registry) if update else self

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def __hash__(self) -> int:
        return hash(self._value())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpsConfig) and self._value() == other._value()

    def _value(self) -> tuple[Any, ...]:
        return self.preset, self.allow_unused, self.overrides, self.verify, self.__pydantic_extra__

    def __repr_args__(self) -> Any:
        return self.model_dump().items()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return ops_schema(
            default_registry(), handler, title=cls.__name__, description=(cls.__doc__ or "").partition("\n")[0]
        )
