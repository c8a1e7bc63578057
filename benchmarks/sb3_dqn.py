"""Stable-Baselines3's DQN, to measure tfdqt's dense DQN against. `scripts/benchmark.py` starts it.

Its usual form: one process, one environment in a DummyVecEnv, without Monitor. The clock runs inside `model.learn`,
between the starts of two rollouts. More environments are possible (`--sb3-envs`) at an equal ratio of updates to steps.
"""

import copy
import json
import sys
import warnings

import ale_py
import gymnasium
import stable_baselines3
import torch
from meter import make_meter, versions
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from torch_update import choose_threads, matmul_rate

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
gymnasium.register_envs(ale_py)


class Measure(BaseCallback):
    """Calls `tick` before each rollout, when every stored step is learned from, once `warm_up` steps are done."""

    def __init__(self, tick, warm_up):
        super().__init__()
        self.tick, self.warm_up, self.going = tick, warm_up, True

    def _on_rollout_start(self):
        if self.going and self.model.num_timesteps >= self.warm_up:
            self.going = self.tick(self.model.num_timesteps, self.model._n_updates)

    def _on_step(self):
        return self.going


def make_env(theirs_env):
    """One environment, without the warnings that an old game is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make(**theirs_env, disable_env_checker=True)


def make_model(settings):
    """The DQN with the settings of ours; see `stable_baselines3.DQN`."""
    cfg, envs = settings["dqn"], settings["sb3_envs"]
    train_freq = max(1, round(1 / (cfg["updates_per_step"] * envs)))  # in steps of the whole vector
    vec = DummyVecEnv([lambda: make_env(settings["theirs_env"])] * envs)
    return stable_baselines3.DQN(
        "MlpPolicy", vec, learning_rate=cfg["learning_rate"], buffer_size=cfg["replay_size"],
        learning_starts=cfg["learning_starts"], batch_size=cfg["batch_size"], tau=cfg["target_tau"], gamma=cfg["gamma"],
        train_freq=train_freq, gradient_steps=round(cfg["updates_per_step"] * envs * train_freq),
        target_update_interval=round(cfg["target_every"] / cfg["updates_per_step"]),  # counted in environment steps
        exploration_initial_eps=cfg["epsilon_start"], exploration_final_eps=cfg["epsilon_end"],
        max_grad_norm=cfg["max_grad_norm"], seed=0, device="cpu",
        policy_kwargs=dict(net_arch=list(settings["network"]["hidden"]), optimizer_kwargs=dict(eps=cfg["adam_epsilon"])))


def serve(settings):
    """Train, and measure the steps that the benchmark asks for."""
    trial = copy.deepcopy(settings)
    trial["dqn"]["learning_starts"] = settings["dqn"]["batch_size"]
    model = make_model(trial)
    choose_threads(settings["torch_threads"], lambda: model.learn(200))
    names = versions("torch", "stable-baselines3", "numpy", "gymnasium", "ale-py")
    tick = make_meter(dict(names, threads=torch.get_num_threads()), matmul_rate)
    make_model(settings).learn(settings["dqn"]["total_steps"], callback=Measure(tick, settings["warm_up"]))


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
