"""PPO: what is learned from is what was acted on, an environment with a known answer, equal runs, exact resume."""

import dataclasses

import numpy as np
from test_dqn import Corridor, Failing, Forever

from tfdqt import gpt, ppo
from tfdqt.acting import make_window, push, shown
from tfdqt.backend import tf
from tfdqt.config import NetworkConfig, PPOConfig, UsageError
from tfdqt.envs import EnvFailure, env_info
from tfdqt.networks import flatten_model
from tfdqt.vec_envs import make_vec_env

NETWORK = NetworkConfig(context=3, layers=1, heads=2, width=16, prev_action=True)
CFG = PPOConfig(total_steps=8_192, num_envs=4, rollout_steps=32, batch_size=64, gamma=0.5, learning_rate=3e-3, value_weight=1.0)


def train(env_fn=Corridor, cfg=CFG, network=NETWORK, workers=0, **more):
    return ppo.ppo(env_fn, lambda info: gpt.build_pi_v(info, network), cfg, workers=workers, **more)


class Stateful(Corridor):
    """A corridor whose state can be saved."""

    def get_state(self):
        return dict(cell=self.cell, steps=self.steps)

    def set_state(self, state):
        self.cell, self.steps = state["cell"], state["steps"]


class TestPPO(tf.test.TestCase):

    def collected(self, env_fn, rollouts=2):
        info = env_info(env_fn())
        networks = flatten_model(gpt.build_pi_v(info, NETWORK))
        networks = networks._replace(start=networks.start * 8.0)  # so that states differ
        vec = make_vec_env(env_fn, info, CFG.num_envs, 0, workers=0)
        window = make_window(info, CFG.num_envs, NETWORK.context)
        push(window, vec.out["obs"], vec.out["first"], -1)
        collect, rng = ppo.make_collect(networks, vec, info, CFG), np.random.default_rng(0)
        for _ in range(rollouts):  # the second one sees steps of the first
            roll, games = collect(networks.start, window, rng)
        return networks, roll, games

    def test_learns_from_the_windows_it_acted_on(self):
        networks, roll, _ = self.collected(Corridor)
        windows = ppo.windows_of(tf.nest.map_structure(tf.constant, roll.stream), tf.range(roll.action.size), NETWORK.context)
        logits, value = ppo.policy_and_value(networks, networks.start, windows)
        log_p = tf.gather(tf.nn.log_softmax(logits), roll.action.reshape(-1), batch_dims=1)
        self.assertGreater(np.std(roll.log_p), 0.01)
        self.assertAllClose(log_p, roll.log_p.reshape(-1), atol=1e-5)
        self.assertAllClose(value, roll.value[:, :-1].reshape(-1), atol=1e-5)

    def test_a_rollout_is_a_stream(self):
        _, roll, games = self.collected(Corridor)
        before = NETWORK.context - 1
        self.assertGreater(len(games), 0)
        now, behind = roll.stream.obs[:, before:-1, 0], roll.stream.obs[:, before + 1:, 0]
        # The step of a finished game only resets; every other one moves as its action says.
        self.assertAllEqual(behind[roll.last[:, :-1]], np.zeros(roll.last[:, :-1].sum()))
        going = ~roll.last[:, :-1]
        self.assertAllEqual(behind[going], np.maximum(0, now + 2 * roll.action[:, :-1] - 1)[going])
        self.assertAllEqual(roll.reward[:, :-1][going], (behind == 3)[going])
        self.assertAllEqual(roll.discount[:, :-1][going], (behind != 3)[going])
        self.assertAllEqual(roll.stream.first[:, before + 1:], roll.last[:, :-1])

    def test_learns_the_way_and_the_values_of_a_corridor(self):
        for network in (NETWORK, NetworkConfig(network="dense", context=1, hidden=(32,))):
            state, networks, progress = train(network=network)
            window, found = make_window(env_info(Corridor()), 1, networks.context), []
            for cell in range(3):  # straight to the end, as the network saw it
                push(window, np.array([[cell]]), np.array([cell == 0]), np.array([1]))
                logits, value = ppo.policy_and_value(networks, state.weights, shown(window))
                found.append([float(tf.nn.softmax(logits)[0, 1]), float(value[0])])
            self.assertAllGreater(np.array(found)[:, 0], 0.9)
            self.assertAllClose(np.array(found)[:, 1], [0.25, 0.5, 1.0], atol=0.12)
            self.assertGreater(progress.mean_return(), 0.99)

    def test_truncation_does_not_end_the_return(self):
        cfg = dataclasses.replace(CFG, normalize_advantages=False, entropy_weight=0.05)  # all actions are worth the same: take both
        state, networks, _ = train(Forever, cfg, NetworkConfig(network="dense", context=1, hidden=(32,)))
        window = make_window(env_info(Forever()), 3, 1)
        push(window, np.arange(3)[:, None], np.ones(3), -1)
        self.assertAllClose(ppo.policy_and_value(networks, state.weights, window._asdict())[1], [2.0] * 3, atol=0.2)

    def test_same_seed_same_run_whatever_the_workers(self):
        cfg = dataclasses.replace(CFG, total_steps=512)
        logs, states = [], []
        for workers, seed in ((0, 3), (2, 3), (0, 4)):
            logs.append([])
            states.append(train(cfg=cfg, seed=seed, workers=workers, log=logs[-1].append)[0])
        self.assertAllEqual(states[0].weights, states[1].weights)
        np.testing.assert_equal([tuple(row) for row in logs[0]], [tuple(row) for row in logs[1]])
        self.assertNotAllEqual(states[0].weights, states[2].weights)
        self.assertLess(logs[0][0].approx_kl, 0.1)

    def test_resume_equals_an_unbroken_run(self):
        cfg, kept = dataclasses.replace(CFG, total_steps=1_024), {}
        network = dataclasses.replace(NETWORK, standardize=True)

        def save(step, make, last=False):
            if step == 512:
                kept.update(make())

        whole, _, end = train(Stateful, cfg, network, save=save)
        again, _, end2 = train(Stateful, cfg, network, saved=kept)
        for one, two in zip(tf.nest.flatten(whole), tf.nest.flatten(again)):
            self.assertAllEqual(one, two)
        self.assertEqual(end, end2)

    def test_a_failing_environment_stops_the_run_after_saving(self):
        saves = []
        with self.assertRaisesRegex(EnvFailure, "the robot fell over"):
            train(Failing, save=lambda step, make, last=False: saves.append((step, make(), last)) if last else None)
        (step, tree, _), = saves
        self.assertEqual(tree["envs"], [None] * 4)
        self.assertEqual(tree["progress"]["step"], step)

    def test_what_can_not_be(self):
        for fault, flag in ((dict(batch_size=100), "for example 64"), (dict(gae_lambda=1.5), "--gae-lambda"), (dict(clip=-1), "--clip"),
                            (dict(entropy_weight=-1), "--entropy-weight"), (dict(value_clip=0.0), "--value-clip"),
                            (dict(rollout_steps=0), "--rollout-steps")):
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag):
                train(cfg=dataclasses.replace(CFG, **fault))
        for fault in (dict(quantiles=4), dict(every_step=False)):
            with self.assertRaisesRegex(UsageError, "--quantiles"):
                train(network=dataclasses.replace(NETWORK, **fault))


if __name__ == "__main__":
    tf.test.main()
