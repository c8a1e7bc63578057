"""PPO: it learns from what it acted on, a known answer, equal runs, exact resume."""

import dataclasses
import functools

import numpy as np

from tests.games.corridor import Corridor, Failing, Forever, Numbered
from tests.games.toys import without_xla
from tests.helpers import slow
from tfdqt.backend import tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games import ppo, rollout
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import env_info
from tfdqt.games.flat import flatten_model
from tfdqt.games.loop import make_stepper
from tfdqt.games.networks import build_pi_v
from tfdqt.games.ppo import PPOConfig
from tfdqt.games.window import make_window, network_inputs, push

NETWORK = NetworkConfig(context=3, layers=1, heads=2, width=16, prev_action=True)
CFG = PPOConfig(
    total_steps=8_192,
    num_envs=4,
    rollout_steps=32,
    batch_size=64,
    gamma=0.5,
    learning_rate=3e-3,
    value_weight=1.0,
)


def train(env_fn=Corridor, cfg=CFG, network=NETWORK, workers=0, **more):
    return ppo.ppo(env_fn, functools.partial(build_pi_v, cfg=network), cfg, workers=workers, **more)


DENSE = NetworkConfig(network="dense", context=1, hidden=(32,))


class TestPPO(tf.test.TestCase):
    def test_learns_from_the_windows_it_acted_on(self):
        net = flatten_model(build_pi_v(env_info(Corridor()), NETWORK))
        weights = net.start * 8.0  # so that states differ
        stepper = make_stepper(Corridor, env_info(Corridor()), NETWORK.context, 4, seed=0)
        act = ppo.make_act(net, stepper, CFG)
        collect = rollout.make_collect(net, stepper, CFG.rollout_steps)
        for _ in range(2):  # the second rollout sees steps of the first
            roll, _ = collect(act(weights))
        stream = tf.nest.map_structure(tf.constant, roll.stream)
        windows = rollout.windows_of(stream, tf.range(roll.action.size), NETWORK.context)
        logits, value = ppo.policy_and_value(net, weights, windows)
        log_p = tf.gather(tf.nn.log_softmax(logits), roll.action.reshape(-1), batch_dims=1)
        acted_log_p = roll.outputs[:, :-1, 0].reshape(-1)
        self.assertGreater(np.std(acted_log_p), 0.01)
        self.assertAllClose(log_p, acted_log_p, atol=1e-5)
        self.assertAllClose(value, roll.outputs[:, :-1, 1].reshape(-1), atol=1e-5)

    def test_a_batch_in_parts_is_learned_from_as_whole(self):
        net = flatten_model(build_pi_v(env_info(Corridor()), NETWORK))
        stepper = make_stepper(Corridor, env_info(Corridor()), NETWORK.context, 4, seed=0)
        cfg = dataclasses.replace(CFG, batch_size=8)
        collect = rollout.make_collect(net, stepper, cfg.rollout_steps)
        roll, _ = collect(ppo.make_act(net, stepper, cfg)(net.start))
        steps = tf.nest.map_structure(tf.constant, roll)
        order = tf.constant(np.arange(8)[None], tf.int32)
        states = []
        for attention in (0, 2**30):
            with without_xla():
                learn = ppo.make_learn(net._replace(attention=attention), cfg)
                states.append(learn(ppo.first_state(net), steps, order))
        (whole, said), (found, said_too) = states
        # Adam's first moment is the gradient.
        self.assertAllClose(found.optimizer[0], whole.optimizer[0], rtol=1e-4, atol=1e-6)
        self.assertAllClose(said_too, said, rtol=1e-4, atol=1e-6)

    def test_learns_the_way_and_the_values_of_a_corridor(self):
        for network in (NETWORK, dataclasses.replace(DENSE, value_scale="sqrt")):
            state, net, progress = train(network=network)
            window, said = make_window(env_info(Corridor()), 1, net.context), []
            for cell in range(3):  # straight to the end, as the network saw it
                push(window, np.array([[cell]]), np.array([cell == 0]), np.array([1]))
                logits, value = ppo.policy_and_value(net, state.weights, network_inputs(window))
                said.append([float(tf.nn.softmax(logits)[0, 1]), float(value[0])])
            self.assertAllGreater(np.array(said)[:, 0], 0.9)
            self.assertAllClose(np.array(said)[:, 1], [0.25, 0.5, 1.0], atol=0.12)
            self.assertGreater(progress.mean_return(), 0.99)

    def test_truncation_does_not_end_the_return(self):
        cfg = dataclasses.replace(
            CFG, normalize_advantages=False, entropy_weight=0.05
        )  # all actions are worth the same: take both
        state, net, _ = train(Forever, cfg, NetworkConfig(network="dense", context=1, hidden=(32,)))
        window = make_window(env_info(Forever()), 3, 1)
        push(window, np.arange(3)[:, None], np.ones(3), -1)
        self.assertAllClose(
            ppo.policy_and_value(net, state.weights, window._asdict())[1], [2.0] * 3, atol=0.2
        )

    def test_same_seed_same_run_whatever_the_workers(self):
        cfg = dataclasses.replace(CFG, total_steps=512)
        logs, states = [], []
        for workers, seed in ((0, 3), (2, 3), (0, 4)):
            logs.append([])
            how = dict(cfg=cfg, network=DENSE, seed=seed, workers=workers, log=logs[-1].append)
            with without_xla():
                states.append(train(**how)[0])
        self.assertAllEqual(states[0].weights, states[1].weights)
        np.testing.assert_equal([tuple(row) for row in logs[0]], [tuple(row) for row in logs[1]])
        self.assertNotAllEqual(states[0].weights, states[2].weights)
        self.assertLess(logs[0][0].approx_kl, 0.1)

    @slow("15 s: test_algorithms has it by scripts")
    def test_resume_equals_an_unbroken_run(self):
        cfg, kept = dataclasses.replace(CFG, total_steps=1_024), {}
        network = dataclasses.replace(NETWORK, standardize=True)

        def save(step, make, last=False):
            if step == 512:
                kept.update(make())

        with without_xla():
            whole, _, end = train(Numbered, cfg, network, save=save)
            again, _, end2 = train(Numbered, cfg, network, saved=kept)
        for one, two in zip(tf.nest.flatten(whole), tf.nest.flatten(again)):
            self.assertAllEqual(one, two)
        self.assertEqual(end, end2)

    def test_a_failing_environment_stops_the_run_after_saving(self):
        saves = []
        with without_xla(), self.assertRaisesRegex(EnvFailure, "the robot fell over"):
            train(
                Failing,
                save=lambda step, make, last=False: (
                    saves.append((step, make(), last)) if last else None
                ),
            )
        ((step, tree, _),) = saves
        self.assertEqual(tree["envs"], [None] * 4)
        self.assertEqual(tree["progress"]["step"], step)

    def test_what_can_not_be(self):
        for fault, flag in (
            (dict(batch_size=100), "for example 64"),
            (dict(final_clip=2), "--final-clip"),
            (dict(gae_lambda=1.5), "--gae-lambda"),
            (dict(clip=-1), "--clip"),
            (dict(entropy_weight=-1), "--entropy-weight"),
            (dict(value_clip=0.0), "--value-clip"),
            (dict(rollout_steps=0), "--rollout-steps"),
        ):
            with self.subTest(fault=fault), self.assertRaisesRegex(UsageError, flag):
                train(cfg=dataclasses.replace(CFG, **fault))
        for fault in (dict(quantiles=4), dict(every_step=False), dict(reward_units=True)):
            with self.assertRaisesRegex(UsageError, "--quantiles"):
                train(network=dataclasses.replace(NETWORK, **fault))


if __name__ == "__main__":
    tf.test.main()
