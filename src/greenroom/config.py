"""A run's configuration: one frozen tree of dataclasses, saved as given, reloadable, every leaf an option.

Where a field may be one of several components (algorithm, network, optimiser), the tables here name them; in YAML the
name stands beside the component's own fields under the key `kind`. A component of one's own is named by where it is:
`package.module:Class`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from greenroom.algorithms import ALGORITHMS, AlgorithmConfig
from greenroom.algorithms.ppo import PPOConfig
from greenroom.algorithms.replaying import drawing_of
from greenroom.budget import Budget
from greenroom.envs.base import Stage
from greenroom.envs.faults import FaultConfig
from greenroom.errors import UserError, nearest
from greenroom.health.settings import HealthConfig
from greenroom.imports import missing, module_of
from greenroom.networks import Impala, Mlp, Nature, NetworkConfig, Nips
from greenroom.optim import Adam, OptimizerConfig, RAdam, RMSprop
from greenroom.policy import PolicyConfig

NETWORKS: dict[str, type[NetworkConfig]] = {"mlp": Mlp, "nips": Nips, "nature": Nature, "impala": Impala}
OPTIMIZERS: dict[str, type[OptimizerConfig]] = {"adam": Adam, "radam": RAdam, "rmsprop": RMSprop}
SEAMS: dict[Any, dict[str, type]] = {
    AlgorithmConfig: dict(ALGORITHMS),
    NetworkConfig: dict(NETWORKS),
    OptimizerConfig: dict(OPTIMIZERS),
}
"""What may be exchanged: the protocol that a field is annotated with → names of those that greenroom brings."""
KINDS: dict[str, type] = {name: kind for table in SEAMS.values() for name, kind in table.items()}

Sink = Literal["tensorboard", "wandb", "mlflow"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run."""

    env: Annotated[str, tyro.conf.Suppress]
    """The environment: a name of `greenroom list`, a Gymnasium id, or `package.module:factory`."""
    env_kwargs: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """The environment's own arguments; on the command line `--env.NAME VALUE`."""
    num_envs: int = 64
    """Actors: environments stepped in parallel (B)."""
    num_workers: int = 0
    """Processes of the stages `workers` and `joint`, or threads of the `native` one; 0: as many as there are cores."""
    stage: Stage = "auto"
    """Where environments are stepped; `auto` measures and says what it picked."""
    collect: Literal["sync", "double", "overlap"] = "sync"
    """`double`: two groups of environments take turns; `overlap`: the next rollout is collected while learning."""
    lag: int = 1
    """With `overlap`: how many updates the acting weights are behind, and so how many rollouts wait for the learner."""
    rollout_length: int = 5
    """Steps per environment between updates (T)."""
    total_steps: int = 1_000_000
    """Agent steps of the whole run, summed over environments."""
    seed: int = 0
    """All random draws of the run derive from it."""
    device: Device = "auto"
    """Where the learner computes; `auto`: a GPU if there is one."""
    threads: int = 0
    """CPU threads of tensor operations; 0: one where a gradient step has little to compute, else up to one a core."""
    compile: bool = False
    """Compile the losses (on a GPU acting too): small networks learn faster, after some ten to thirty seconds. Needs a
    C++ compiler, on a GPU triton."""
    algorithm: AlgorithmConfig = field(default_factory=PPOConfig)
    """The learning algorithm."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy's network and what surrounds it."""
    eval_every: int = 0
    """Evaluate greedily whenever so many agent steps have passed; 0: only at the end."""
    eval_episodes: int = 32
    """Episodes of each evaluation, the one at the end included."""
    save_every: int = 0
    """Save a checkpoint whenever so many agent steps have passed; 0: ten times a run. The end is always saved."""
    keep: int = 3
    """Newest checkpoints that are kept; the best evaluated one stays in any case."""
    log_seconds: float = 2.0
    """Least time between two lines of metrics, in seconds of collecting and learning."""
    sinks: tuple[Sink, ...] = ("tensorboard",)
    """Where metrics go besides the terminal and `metrics.jsonl`."""
    budget: Budget = field(default_factory=Budget)
    """What the run may take."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """What to do about environments that fail."""
    monitor: HealthConfig = field(default_factory=HealthConfig)
    """What is watched, and what is done about it."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "rollout_length", "total_steps", "eval_episodes", "keep", "lag"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("num_workers", "threads", "eval_every", "save_every", "seed", "log_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, and is {getattr(self, name)}")
        if self.collect == "double" and self.num_envs % 2:
            raise UserError(f"collect=double halves the actors: num_envs must be even, not {self.num_envs}")
        if self.lag != 1 and self.collect != "overlap":
            raise UserError(
                f"lag={self.lag} is for collect=overlap; {self.collect} always acts with the newest weights"
            )
        for name, value in leaves(self):
            if isinstance(value, float) and math.isnan(value):  # which no comparison with a limit finds
                raise UserError(f"{name} is not a number (NaN)")

    @property
    def algo(self) -> str:
        """The algorithm's name."""
        return kind_of(self.algorithm)

    @property
    def steps_per_update(self) -> int:
        """Agent steps per rollout, T·B."""
        return self.num_envs * self.rollout_length

    @property
    def steps_per_gradient(self) -> int:
        """Steps that one gradient step learns from: a batch from a replay, a minibatch, or all of the rollout."""
        if (drawing := drawing_of(self.algorithm)) is not None:
            return drawing.batch_size
        return self.steps_per_update // max(1, int(getattr(self.algorithm, "minibatches", 1)))

    @property
    def save_interval(self) -> int:
        """Agent steps between checkpoints."""
        return self.save_every or max(1, self.total_steps // 10)


def leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of every setting in a tree of configs, in the order of the fields."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value)
        else:
            yield item.name, value


def kind_of(component: object) -> str:
    """The name by which a config's component is found again: one of the tables', or `package.module:Class`."""
    kind = type(component)
    return next((name for name, known in KINDS.items() if known is kind), f"{kind.__module__}:{kind.__qualname__}")


def component(seam: Any, name: str) -> type:
    """The config class that `name` stands for at a seam: one of its table's, or a user's `package.module:Class`.

    Raises:
        UserError: there is none such, or it is not a dataclass with what the seam asks for.
    """
    table = SEAMS[seam]
    if name in table:
        return table[name]
    place, colon, attribute = name.partition(":")
    if not colon:
        label = seam.__name__.removesuffix("Config").lower()
        raise UserError(f"no {label} {name!r}{nearest(name, table)}, or give your own: package.module:Class")
    module = module_of(place, name)
    found = getattr(module, attribute, None)
    if found is None:
        raise missing(module, attribute, "class")
    public = {part: value for part, value in vars(seam).items() if not part.startswith("_")}
    methods = [f"the method {part}" for part, value in public.items() if callable(value)]
    wanted = [f"the field {part}" for part, value in public.items() if isinstance(value, property)] + methods
    whole = isinstance(found, type) and dataclasses.is_dataclass(found)
    there = {*dir(found), *(item.name for item in dataclasses.fields(found))} if whole else set()
    if not whole or not {part.split()[-1] for part in wanted} <= there:
        raise UserError(
            f"{name} is not a dataclass with {' and '.join(wanted)}: a component's config says how it is built; see "
            "docs/extend.md"
        )
    kind: type = found
    return kind


def by_default(kind: type) -> Any:
    """A component's config as it is if nothing is said.

    Raises:
        UserError: a field has no default.
    """
    try:
        return kind()
    except TypeError as problem:
        raise UserError(f"{kind.__module__}:{kind.__qualname__}: give every field a default ({problem})") from problem


def narrowed(config: Any) -> Any:
    """An equal config whose class names the chosen component in every exchangeable field: options can be made of it."""
    kind, hints = type(config), typing.get_type_hints(type(config), include_extras=True)
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    values = {name: narrowed(part) if dataclasses.is_dataclass(part) else part for name, part in values.items()}
    narrow = {name: type(part) if dataclasses.is_dataclass(part) else hints[name] for name, part in values.items()}
    if narrow == {name: hints[name] for name in values}:
        return config
    made = dataclasses.make_dataclass(kind.__name__, narrow.items(), bases=(kind,), frozen=True, kw_only=True)
    made.__module__, made.__doc__ = kind.__module__, kind.__doc__
    made.widened = kind  # type: ignore[attr-defined]  # how `widened` finds back
    return made(**values)


def widened(config: Any) -> Any:
    """The inverse of `narrowed`."""
    kind = getattr(type(config), "widened", type(config))
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    return kind(**{name: widened(part) if dataclasses.is_dataclass(part) else part for name, part in values.items()})


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, complete: what `from_dict` takes."""
    kind: Any = type(config)
    types_of = _hints(kind)
    plain: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        kind = {"kind": kind_of(value)} if types_of[item.name] in SEAMS else {}
        plain[item.name] = (
            kind | to_dict(value)
            if dataclasses.is_dataclass(value)
            else list(value)
            if isinstance(value, tuple)
            else dict(value)
            if isinstance(value, dict)
            else value
        )
    return plain


def dump(config: RunConfig) -> str:
    """The config as YAML.

    Raises:
        UserError: an argument of the environment is more than plain values.
    """
    try:
        return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False)
    except yaml.YAMLError as problem:
        raise UserError(
            "env_kwargs must be numbers, strings, lists and mappings, to be saved with the run, and are "
            f"{config.env_kwargs!r}; build the rest in a factory of your own: package.module:factory"
        ) from problem


def load(text: str, source: str) -> RunConfig:
    """The config that `dump` wrote, or that a user wrote by hand.

    Args:
        text: YAML; missing keys take their defaults.
        source: where it came from, for messages.

    Raises:
        UserError: not YAML, an unknown key, a value of the wrong type or out of range; names the key.
    """
    config = from_dict(RunConfig, parse_yaml(text, source), source)
    assert isinstance(config, RunConfig)
    return config


def load_file(path: Path) -> RunConfig:
    """The config in a file: see `load`.

    Raises:
        UserError: as `load`, or the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise UserError(f"{path} is not a text file: {problem}; give a config.yaml") from problem
    return load(text, str(path))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes `3e-4` for a word, wanting `3.0e-4`; here it is a number."""


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what the loader would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parse_yaml(text: str, source: str) -> Any:
    """The plain value that a YAML text stands for.

    Raises:
        UserError: it is not YAML; names `source`.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as problem:
        raise UserError(f"{source} is not valid YAML: {problem}") from problem
    except Exception as problem:  # PyYAML trips over some values: a 45th day, `!!bool x`, a thousand brackets
        raise UserError(f"{source} is not valid YAML: {type(problem).__name__}: {problem}") from problem


def from_dict(kind: Any, data: object, where: str, base: object = None) -> Any:
    """Build dataclass `kind` from plain values, strictly. What is missing is as in `base`, else as the class has it."""
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected a mapping of {kind.__name__}'s fields, found {data!r}")
    types_of = _hints(kind)
    for key in data:
        if key not in types_of:
            raise UserError(f"{where}: unknown key {key!r}{nearest(str(key), types_of)}")
    given = _defaults(kind) if base is None else {name: getattr(base, name) for name in types_of}
    missing = [name for name in types_of if name not in given and name not in data]
    if missing:
        raise UserError(f"{where}: missing key {missing[0]!r}")
    # A component's own missing keys are as in the default that its owner has for it: A2C's λ is not PPO's.
    values = {key: _value(types_of[key], value, f"{where}: {key}", given.get(key)) for key, value in data.items()}
    try:
        return kind(**given | values)
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _defaults(kind: Any) -> dict[str, Any]:
    """The fields' default values, of those that have one."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        if item.default is not dataclasses.MISSING:
            found[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            found[item.name] = item.default_factory()
    return found


def _value(kind: Any, value: Any, where: str, base: object = None) -> Any:
    origin = typing.get_origin(kind)
    if kind in SEAMS:
        return _one_of(kind, value, where, base)
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where, base)
    if origin is Literal:
        known = [str(choice) for choice in typing.get_args(kind)]
        if value not in known:
            raise UserError(f"{where}: {value!r} is not a valid value{nearest(str(value), known)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, found {value!r}")
        return tuple(_value(typing.get_args(kind)[0], part, f"{where}[{i}]") for i, part in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{where}: expected a mapping with names as keys, found {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{where}: expected float, found a whole number that is too large for one") from None
    # bool is a subclass of int, and nobody means True by num_envs.
    if type(value) is not kind:
        raise UserError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value


def _one_of(seam: Any, value: Any, where: str, base: object) -> Any:
    """A component out of several: its `kind` says which."""
    if not isinstance(value, dict) or "kind" not in value:
        raise UserError(f"{where}: expected a mapping with `kind`, one of {', '.join(SEAMS[seam])}")
    try:
        chosen = component(seam, str(value["kind"]))
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None
    data = {key: part for key, part in value.items() if key != "kind"}
    return from_dict(chosen, data, where, base if type(base) is chosen else None)
