"""Play whole games with a trained network, count their scores and film them."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfdqt import gpt
from tfdqt.acting import make_window, push, shown
from tfdqt.backend import tf
from tfdqt.config import DQNConfig, NetworkConfig, PPOConfig, UsageError, load_config
from tfdqt.dqn import DQNState
from tfdqt.envs import env_info, make_env
from tfdqt.networks import Networks, flatten_model, make_act, make_scores, set_weights
from tfdqt.policy import choose, epsilon_greedy
from tfdqt.runs import find_run, load_checkpoint
from tfdqt.vec_envs import REST, make_vec_env


class Trained(NamedTuple):
    """A trained network and where it comes from."""

    networks: Networks  # whose `apply` gives what the best action is the largest of: Q-values, or a policy's logits
    weights: tf.Tensor  # [W]
    info: tuple  # EnvInfo
    name: str
    algorithm: str  # dqn or ppo
    seed: int
    step: int  # environment steps it was trained for


def load_run(run_dir, checkpoint=None):
    """The network of a run's newest checkpoint, or of the one named. Raises UsageError if there is none that is whole."""
    path = find_run(run_dir) / "config.json"
    algorithm = "ppo" if load_config(path).get("algorithm") == "ppo" else "dqn"
    settings = load_config(path, network=NetworkConfig, **{algorithm: PPOConfig if algorithm == "ppo" else DQNConfig})
    saved, _ = load_checkpoint(run_dir, checkpoint)
    env = make_env(settings["name"])
    info = env_info(env, settings["name"])
    env.close()
    if algorithm == "ppo":
        networks, acts = flatten_model(gpt.build_pi_v(info, settings["network"])), 0
        networks = networks._replace(apply=lambda weights, inputs: networks.raw(weights, inputs)[..., :-1])
    else:
        networks, acts = flatten_model(gpt.build_q(info, settings["network"])), DQNState._fields.index("acting")
    weights = tf.constant(saved["learner"][acts])
    if weights.shape != networks.start.shape:
        raise UsageError(f"The checkpoint of {run_dir} holds {weights.shape[0]} weights, but the network of its config.json has "
                         f"{networks.start.shape[0]}; put back the config.json that the run was started with.")
    set_weights(networks, weights)
    return Trained(networks, weights, info, settings["name"], algorithm, settings["seed"], saved["progress"]["step"])


def play(env_fn, info, networks, weights, *, episodes, epsilon=0.0, sample=False, seed=0, workers=0, max_steps=None):
    """Play `episodes` games side by side, one in each of as many environments, and return (returns, lengths), [episodes].

    Actions are the best, or uniformly random with probability `epsilon`; sample: they are drawn from a policy instead. A game
    longer than `max_steps` steps counts as it stands then. The outcome depends on `seed` alone.
    """
    rng, scores, best = np.random.default_rng([seed, 2]), make_scores(networks), make_act(networks)

    def act(inputs):
        if sample:
            return choose(rng, scores(weights, inputs).numpy(), greedy=False)
        return epsilon_greedy(rng, best(weights, inputs).numpy(), info.num_actions, epsilon)

    vec = make_vec_env(env_fn, info, episodes, np.random.SeedSequence([seed, 3]).generate_state(1)[0], workers=workers)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, int)
    playing = np.ones(episodes, bool)
    try:
        window = make_window(info, episodes, networks.context)
        push(window, vec.out["obs"], vec.out["first"], -1)
        steps = 0
        while playing.any() and (max_steps is None or steps < max_steps):
            action = act(shown(window))
            vec.step(np.where(playing, action, REST))
            push(window, vec.out["obs"], vec.out["first"], action)
            returns[playing], lengths[playing] = vec.out["ret"][playing], vec.out["length"][playing]
            playing &= ~vec.out["ended"]
            steps += 1
    finally:
        vec.close()
    return returns, lengths


def film(env_fn, info, networks, weights, folder, *, epsilon=0.0, seed=0, max_steps=None):
    """Play one game with gymnasium's RecordVideo. `env_fn` must make an environment with render_mode="rgb_array".

    Returns (path of the MP4 in `folder`, return of the game).
    """
    from gymnasium.wrappers import RecordVideo

    env_fn = functools.partial(_recorded, env_fn, folder, RecordVideo)
    returns, _ = play(env_fn, info, networks, weights, episodes=1, epsilon=epsilon, seed=seed, max_steps=max_steps)
    return max(Path(folder).glob("*.mp4"), key=lambda path: path.stat().st_mtime), float(returns[0])


def _recorded(env_fn, folder, wrapper):
    env = env_fn()
    if env.render_mode != "rgb_array":
        raise UsageError('A film needs an environment made with render_mode="rgb_array".')
    return wrapper(env, str(folder), episode_trigger=lambda episode: episode == 0, disable_logger=True)
