"""Stable-Baselines3's DQN and PPO, to measure tfdqt's against on dense networks.

`benchmark.py` starts it. Their usual form: one process, environments (DQN: one) in a DummyVecEnv,
without Monitor. The clock runs inside `model.learn`, between the starts of two rollouts. More
environments are possible (--sb3-envs) at an equal ratio of updates to steps.
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
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch_update import choose_threads, matmul_rate

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
gymnasium.register_envs(ale_py)


class Measure(BaseCallback):
    """Calls `tick` before each rollout, when every stored step is learned from.

    It begins once `warm_up` steps are done. `per_count` is how many updates the model counts as
    one.
    """

    def __init__(self, tick, warm_up, per_count):
        super().__init__()
        self.tick = tick
        self.warm_up = warm_up
        self.per_count = per_count
        self.going = True

    def _on_rollout_start(self):
        if self.going and self.model.num_timesteps >= self.warm_up:
            updates = self.model._n_updates * self.per_count
            self.going = self.tick(self.model.num_timesteps, updates)

    def _on_step(self):
        return self.going


def make_env(theirs_env):
    """One environment, without the warnings that an old game is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make(**theirs_env, disable_env_checker=True)


class Shared(BaseFeaturesExtractor):
    """The dense network that policy and value share, as ours do."""

    def __init__(self, observation_space, hidden):
        super().__init__(observation_space, hidden[-1])
        sizes = (observation_space.shape[0], *hidden)
        layers = []
        for before, after in zip(sizes, sizes[1:]):
            layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, obs):
        return self.layers(obs)


def make_ppo(settings):
    """The PPO with the settings of ours; see `stable_baselines3.PPO`."""
    cfg = settings["cfg"]
    vec = DummyVecEnv([lambda: make_env(settings["theirs_env"])] * cfg["num_envs"])
    policy = dict(
        net_arch=[],
        features_extractor_class=Shared,
        features_extractor_kwargs=dict(hidden=list(settings["network"]["hidden"])),
        optimizer_kwargs=dict(eps=cfg["adam_epsilon"]),
    )
    return stable_baselines3.PPO(
        "MlpPolicy",
        vec,
        learning_rate=cfg["learning_rate"],
        n_steps=cfg["rollout_steps"],
        batch_size=cfg["batch_size"],
        n_epochs=cfg["update_epochs"],
        gamma=cfg["gamma"],
        gae_lambda=cfg["gae_lambda"],
        clip_range=cfg["clip"],
        ent_coef=cfg["entropy_weight"],
        vf_coef=cfg["value_weight"],
        max_grad_norm=cfg["max_grad_norm"],
        seed=0,
        device="cpu",
        policy_kwargs=policy,
    )


def make_dqn(settings):
    """The DQN with the settings of ours; see `stable_baselines3.DQN`."""
    cfg = settings["cfg"]
    envs = settings["sb3_envs"]
    train_freq = max(1, round(1 / (cfg["updates_per_step"] * envs)))  # in steps of the whole vector
    vec = DummyVecEnv([lambda: make_env(settings["theirs_env"])] * envs)
    policy = dict(
        net_arch=list(settings["network"]["hidden"]),
        optimizer_kwargs=dict(eps=cfg["adam_epsilon"]),
    )
    return stable_baselines3.DQN(
        "MlpPolicy",
        vec,
        learning_rate=cfg["learning_rate"],
        buffer_size=cfg["replay_size"],
        learning_starts=cfg["learning_starts"],
        batch_size=cfg["batch_size"],
        tau=cfg["target_tau"],
        gamma=cfg["gamma"],
        train_freq=train_freq,
        gradient_steps=round(cfg["updates_per_step"] * envs * train_freq),
        # counted in environment steps
        target_update_interval=round(cfg["target_every"] / cfg["updates_per_step"]),
        exploration_initial_eps=cfg["epsilon_start"],
        exploration_final_eps=cfg["epsilon_end"],
        max_grad_norm=cfg["max_grad_norm"],
        seed=0,
        device="cpu",
        policy_kwargs=policy,
    )


def updates_per_pass(cfg):
    """Steps of the optimizer in each pass over a rollout; PPO counts the passes."""
    return cfg["num_envs"] * cfg["rollout_steps"] // cfg["batch_size"]


def serve(settings):
    """Train, and measure the steps that the benchmark asks for."""
    trial = copy.deepcopy(settings)
    if settings["algorithm"] == "ppo":
        make = make_ppo
        per_count = updates_per_pass(settings["cfg"])
    else:
        make = make_dqn
        per_count = 1
        trial["cfg"]["learning_starts"] = settings["cfg"]["batch_size"]
    model = make(trial)
    choose_threads(settings["torch_threads"], lambda: model.learn(200))
    ready = versions("torch", "stable-baselines3", "numpy", "gymnasium", "ale-py")
    ready["threads"] = torch.get_num_threads()
    measure = Measure(make_meter(ready, matmul_rate), settings["warm_up"], per_count)
    make(settings).learn(settings["cfg"]["total_steps"], callback=measure)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
