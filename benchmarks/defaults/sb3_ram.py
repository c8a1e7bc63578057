"""Stable-Baselines3's DQN on a game of Atari, from the console's memory. `defaults.py` starts it.

    .bench/bin/python benchmarks/defaults/sb3_ram.py Breakout-ram-v0 FOLDER 0 1000000 30 0.05

The settings are those of RL-Zoo for pixels, but for a start of learning after a hundredth of the
steps, and eight environments, which is faster at the same number of updates. The game, the signs of
rewards and the ends at lost lives are those of tfdqt's runs. Four steps are stacked, and a dense
network of 2 x 256 sees their bytes as parts of 255. Runs in the environment of
../speed/requirements-bench.txt, which has no tfdqt. Writes FOLDER/log.csv and evaluation.csv as
tfdqt does.
"""

import csv
import sys
import time
import warnings
from collections import deque
from pathlib import Path

import ale_py
import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, EpisodicLifeEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

ENVS = 8
LOG_EVERY = 10_000  # steps
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
gymnasium.register_envs(ale_py)


class Bytes(BaseFeaturesExtractor):
    """Bytes as parts of 255."""

    def __init__(self, observation_space):
        super().__init__(observation_space, observation_space.shape[0])

    def forward(self, observations):
        return observations / 255


class Log(BaseCallback):
    """Writes the mean return of the last 100 whole games to CSV."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.returns = deque(maxlen=100)
        self.rows = []
        self.start = time.perf_counter()

    def _on_step(self):
        for info in self.locals["infos"]:
            if "episode" in info:
                self.returns.append(info["episode"]["r"])
        if self.num_timesteps % LOG_EVERY < ENVS:
            self.add_row()
        return True

    def _on_training_end(self):
        if not self.rows or self.rows[-1]["step"] < self.num_timesteps:
            self.add_row()

    def add_row(self):
        mean = float(np.mean(self.returns)) if self.returns else float("nan")
        seconds = time.perf_counter() - self.start
        self.rows.append(dict(step=self.num_timesteps, mean_return=mean, seconds=seconds))
        write(self.path, self.rows)


def write(path, rows):
    """Write rows, one dictionary each, as a CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def make_env(name, train):
    """A game; for training with signs of rewards, and ends at lost lives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # <Game>-ram-v0, which ale-py dropped, is <Game>-v0 seen as its memory.
        env = gymnasium.make(name.replace("-ram", ""), obs_type="ram", disable_env_checker=True)
    return ClipRewardEnv(EpisodicLifeEnv(Monitor(env))) if train else env


def make_vec(name, number, train=True):
    """`number` games, of which the four latest steps are seen."""
    return VecFrameStack(DummyVecEnv([lambda: make_env(name, train)] * number), 4)


def play(model, name, games, epsilon, seed):
    """The scores of whole games, one after another, with a random action at times."""
    vec = make_vec(name, 1, train=False)
    vec.seed(seed)
    rng = np.random.default_rng(seed)
    scores = []
    score = 0.0
    obs = vec.reset()
    while len(scores) < games:
        action, _ = model.predict(obs, deterministic=True)
        if rng.random() < epsilon:
            action = rng.integers(vec.action_space.n, size=1)
        obs, reward, done, _ = vec.step(action)
        score += float(reward[0])
        if done[0]:
            scores.append(score)
            score = 0.0
    return scores


def main(name, folder, seed, total_steps, games, epsilon):
    torch.set_num_threads(1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seed = int(seed)
    model = stable_baselines3.DQN(
        "MlpPolicy",
        make_vec(name, ENVS),
        learning_rate=1e-4,
        buffer_size=100_000,
        learning_starts=int(total_steps) // 100,
        batch_size=32,
        train_freq=1,
        gradient_steps=ENVS // 4,
        target_update_interval=1_000,
        exploration_fraction=0.1,
        exploration_final_eps=0.01,
        seed=seed,
        device="cpu",
        policy_kwargs=dict(net_arch=[256, 256], features_extractor_class=Bytes),
    )
    model.learn(int(total_steps), callback=Log(folder / "log.csv"))
    scores = play(model, name, int(games), float(epsilon), seed)
    write(folder / "evaluation.csv", [{"return": score} for score in scores])


if __name__ == "__main__":
    main(*sys.argv[1:])
