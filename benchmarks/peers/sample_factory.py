"""Sample Factory's asynchronous PPO on EnvPool: it collects in one process while it learns in another."""

from __future__ import annotations

import sys

# Python puts this script's folder first, where `sample_factory` is this file.
sys.path.append(sys.path.pop(0))

import os
import tempfile

from common import Clock, options, report, unsupported

args = options()
if not args.ppo:
    unsupported("it has PPO only")

import envpool
import psutil
import torch
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.actor_critic import create_actor_critic
from sample_factory.train import make_runner
from sf_examples.envpool.envpool_wrappers import EnvPoolResetFixWrapper

torch.set_num_threads(args.threads)


def make_env(name, cfg, env_config, render_mode=None):
    """One worker's EnvPool."""
    special = {"episodic_life": False, "reward_clip": True, "repeat_action_probability": 0.0} if args.atari else {}
    env = envpool.make(
        "Pong-v5" if args.atari else "CartPole-v1",
        env_type="gymnasium",
        num_envs=args.num_envs // splits,
        num_threads=args.threads,
        **special,
    )
    env.closed = True  # Gymnasium's `close` asks; EnvPool has nothing to close
    env = EnvPoolResetFixWrapper(env)
    env.num_agents = args.num_envs // splits
    return env


class Counting(AlgoObserver):
    """Counts agent steps that were learned from."""

    def __init__(self) -> None:
        self.clock, self._seen = Clock(args), 0

    def on_training_step(self, runner, training_iteration_since_resume: int) -> None:
        total = runner.total_env_steps_since_resume or 0
        steps, self._seen = total - self._seen, total
        if steps and self.clock.passed(steps):
            how = f"EnvPool, {splits} × {args.num_envs // splits} environments, {args.threads} threads; asynchronous"
            # The learner's network is in another process; this is one like it.
            info = runner.env_info
            alike = create_actor_critic(runner.cfg, info.obs_space, info.action_space)
            report(self.clock, "sample-factory", how, alike.parameters())
            for child in psutil.Process().children(recursive=True):
                child.kill()
            os._exit(0)


splits = 2
"""Halves of the environments that take turns."""

if __name__ == "__main__":
    words = {
        "algo": "APPO",
        "env": "task",
        "experiment": "bench",
        "train_dir": tempfile.mkdtemp(),
        "device": "cpu",
        "num_workers": 1,
        "num_envs_per_worker": splits,
        "worker_num_splits": splits,
        "batched_sampling": True,
        "async_rl": True,
        "serial_mode": False,
        "rollout": args.rollout_length,
        "recurrence": 1,
        "use_rnn": False,
        "batch_size": args.batch // args.minibatches,
        "num_batches_per_epoch": args.minibatches,
        "num_epochs": args.epochs,
        "normalize_input": False,
        "normalize_returns": False,
        "with_vtrace": False,
        "max_grad_norm": 0.5,
        "learning_rate": 2.5e-4,
        "save_every_sec": 100000,
        "experiment_summaries_interval": 100000,
        "env_frameskip": 1,
    }
    words |= (
        {"encoder_conv_architecture": "convnet_atari", "obs_scale": 255.0, "nonlinearity": "relu"}
        if args.atari
        else {"encoder_mlp_layers": [64, 64], "nonlinearity": "tanh", "actor_critic_share_weights": False}
    )
    argv = []
    for name, value in words.items():
        argv += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    register_env("task", make_env)
    parser, _ = parse_sf_args(argv=argv)
    cfg, runner = make_runner(parse_full_cfg(parser, argv))
    runner.register_observer(Counting())
    runner.init()
    runner.run()
