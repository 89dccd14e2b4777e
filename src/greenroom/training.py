"""The loop. Everything periodic is the caller's: an `if` around what `train(run)` yields."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import greenroom
from greenroom import envs, machine
from greenroom.acting import Collector, Empty, Source
from greenroom.backstage import Backstage
from greenroom.compiling import CompiledActor, compile_marked
from greenroom.config import RunConfig
from greenroom.envs.base import Environment
from greenroom.envs.factory import Registration, register, registration_of
from greenroom.errors import UserError
from greenroom.networks import Impala, Nature, Nips
from greenroom.overlap import Overlapped, Thread
from greenroom.policy import Policy, Precision
from greenroom.seeding import derive
from greenroom.spec import EnvSpec
from greenroom.threads import crowding, worthwhile
from greenroom.types import Progress

Say = Callable[[str], None]
_CROWDED = 1.5
"""How many times as long as one thread several may take before a user is told of it."""


class Run:
    """The parts of one run, built from its config: environments, policy, algorithm, collector and clock."""

    def __init__(self, config: RunConfig, *, say: Say = print) -> None:
        self.config = config
        self.device = choose_device(config)
        world = make_world(config, self.device, say)
        self._threads_before = torch.get_num_threads()
        try:
            if config.threads:
                torch.set_num_threads(config.threads)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(config.seed, "initialisation"))
                policy = make_policy(config, world.spec, self.device, say)
            torch.set_num_threads(choose_threads(config, policy, world.spec, self.device, say))
            self.algorithm = config.algorithm.build(
                policy,
                spec=world.spec,
                num_envs=config.num_envs,
                rollout_length=config.rollout_length,
                total_steps=config.total_steps,
                seed=config.seed,
            )
            if config.compile:
                compile_marked(self.algorithm, self.device)
                say(
                    "compile: the first update waits for it, some ten seconds; with a memory and long rollouts, minutes"
                )
            self.collector = make_source(config, world, policy, self.device)
        except BaseException:
            world.close()
            torch.set_num_threads(self._threads_before)
            raise
        self.env_steps = 0
        self.updates = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken."""
        return self.env_steps >= self.config.total_steps

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, environments included where they can be copied."""
        return {
            "algorithm": self.algorithm.state_dict(),
            "collector": self.collector.state_dict(),
            "env_steps": self.env_steps,
            "updates": self.updates,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.algorithm.load_state_dict(state["algorithm"])
        self.collector.load_state_dict(state["collector"])
        self.env_steps, self.updates, self.seconds = state["env_steps"], state["updates"], state["seconds"]

    def close(self) -> None:
        """Close the environments, and leave torch the threads that it had."""
        self.collector.close()
        torch.set_num_threads(self._threads_before)


def train(run: Run) -> Iterator[Progress]:
    """Next rollout, learn, tell; until the run's steps are taken. `seconds` counts only what happens in here."""
    machine.keep_freed_memory()
    learning = 0.0
    while not run.finished:
        start = time.perf_counter()
        rollout = next(run.collector)
        collected = time.perf_counter()
        metrics = run.algorithm.learn(rollout)
        end = time.perf_counter()
        learning += end - collected
        run.env_steps += rollout.reward.numel()
        run.updates += 1
        run.collector.version = run.updates
        run.seconds += end - start
        yield Progress(
            env_steps=run.env_steps,
            updates=run.updates,
            seconds=run.seconds,
            rollout=rollout,
            metrics=metrics,
            time_split={**run.collector.time_split, "learn": learning},
        )


def make_groups(config: RunConfig, device: torch.device, say: Say) -> list[Environment]:
    """The environments that a run acts in: one group, or two that take turns."""
    count = 2 if config.collect == "double" else 1
    groups: list[Environment] = []
    try:
        for number in range(count):
            groups.append(
                envs.make(
                    config.env,
                    num_envs=config.num_envs // count,
                    stage=config.stage,
                    num_workers=config.num_workers or None,
                    kwargs=config.env_kwargs,
                    device=device,
                    faults=config.faults,
                    say=say if number == 0 else lambda line: None,
                    alert=say,
                    taken_cores=taken_cores(config),
                )
            )
    except BaseException:
        for group in groups:
            group.close()
        raise
    return groups


def taken_cores(config: RunConfig) -> int:
    """Cores that a run keeps busy while its environments are stepped: one for the learner, at least."""
    return 1 if config.collect == "overlap" else 0


def make_policy(config: RunConfig, spec: EnvSpec, device: torch.device, say: Say) -> Any:
    """The policy that a run teaches, with new weights, where it computes."""
    precision = choose_precision(config, device, say)
    policy, layout = config.algorithm.policy(config.policy, spec, precision), choose_layout(config, device)
    policy.normalizer.channels_last = layout is torch.channels_last
    return policy.to(device, memory_format=layout)


class Here:
    """Environments of this process."""

    def __init__(self, groups: list[Environment]) -> None:
        self.groups, self.spec = groups, groups[0].spec

    def close(self) -> None:
        """Close all of them."""
        for group in self.groups:
            group.close()


def make_world(config: RunConfig, device: torch.device, say: Say) -> Here | Backstage:
    """The environments of a run, here or where they are collected from beside a learner on this processor."""
    if config.collect == "overlap" and device.type == "cpu":
        return Backstage(partial(_make_known, registration_of(config.env), config, device), say)
    return Here(make_groups(config, device, say))


def _make_known(known: Registration | None, config: RunConfig, device: torch.device, say: Say) -> list[Environment]:
    """`make_groups` in a process where nobody else may have registered the environment."""
    register(known)
    return make_groups(config, device, say)


def make_collector(
    config: RunConfig, device: torch.device, groups: list[Environment], policy: Policy, *, memories: int, empty: Empty
) -> Collector:
    """What acts in the environments, in whichever process they are."""
    return Collector(
        groups,
        CompiledActor(policy) if config.compile and device.type != "cpu" else policy,
        rollout_length=config.rollout_length,
        seed=config.seed,
        device=device,
        memories=memories,
        empty=empty,
    )


def make_source(config: RunConfig, world: Here | Backstage, policy: Policy, device: torch.device) -> Source:
    """Where the loop gets its rollouts from: ways to collect differ in this, `make_world` and `make_groups` only."""
    make = partial(make_collector, config, device)
    if isinstance(world, Backstage):
        world.enter(make, policy, lag=config.lag)
        return Overlapped(world, lag=config.lag, device=device)
    here = partial(make, world.groups, empty=torch.empty)
    if config.collect != "overlap":
        return here(policy, memories=1)
    # One rollout is with the learner while `lag` are collected or wait.
    return Overlapped(Thread(partial(here, memories=config.lag + 1), policy), lag=config.lag, device=device)


def choose_device(config: RunConfig) -> torch.device:
    """Where the learner computes."""
    if config.device == "cuda":
        require_cuda()
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def require_cuda() -> None:
    """Refuse `--device cuda` where there is no GPU.

    Raises:
        UserError: torch sees none.
    """
    if not torch.cuda.is_available():
        built = torch.version.cuda
        remedy = f"see with nvidia-smi whether its driver is new enough for CUDA {built}, which this torch is built for"
        remedy = remedy if built else "install a CUDA build of torch"
        raise UserError(f"--device cuda: torch sees no GPU here; use --device cpu, or {remedy}")


def choose_threads(config: RunConfig, policy: Policy, spec: EnvSpec, device: torch.device, say: Say) -> int:
    """How many CPU threads tensor operations get."""
    most = torch.get_num_threads()
    count = config.threads or worthwhile(policy, spec, config.steps_per_gradient, device=device)
    if count < most:
        say(f"threads: {count} of {most} (a gradient step has little to compute; --threads {most} uses them all)")
    if device.type == "cpu" and count > 1:
        if greenroom._torch_came_first:
            say(
                "torch was imported before greenroom, so its idle threads take time from simulators on their cores; "
                "import greenroom first, or set GOMP_SPINCOUNT=5000"
            )
        if (slower := crowding(count)) > _CROWDED:
            say(
                f"this machine is busy with something else: {count} threads take {slower:.1f} times as long as one for "
                "the same small operation; while that lasts, --threads 1 is faster"
            )
    return count


def choose_layout(config: RunConfig, device: torch.device) -> torch.memory_format:
    """How convolutional weights lie in memory; without effect on other networks."""
    wanted = {"auto": device.type == "cpu", "on": True, "off": False}[config.policy.channels_last]
    return torch.channels_last if wanted else torch.preserve_format


def choose_precision(config: RunConfig, device: torch.device, say: Say) -> Precision:
    """Arithmetic of the network. bfloat16 only for convolutions on a processor that is faster by it."""
    if config.policy.precision != "auto":
        return config.policy.precision
    kind = machine.quick_bf16() if device.type == "cpu" else None
    if kind is None or not isinstance(config.policy.network, Nips | Nature | Impala):
        return "float32"
    say(f"precision: bfloat16 convolutions (this processor has {kind}; --precision float32 turns it off)")
    return "bfloat16"
