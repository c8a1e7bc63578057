"""DQN: the loss on windows by hand, the compiled update, acting, a known answer, equal runs."""

import dataclasses
import functools
import itertools
from unittest import mock

import gymnasium
import numpy as np

from tests.games.corridor import Corridor, Failing, Forever, Numbered
from tests.games.toys import NUMBER, linear_net, without_xla
from tfdqt.backend import keras, tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games import cost, dqn
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.envs import env_info
from tfdqt.games.features import features_shown
from tfdqt.games.flat import flatten_q, make_act, mean_q
from tfdqt.games.loop import make_stepper
from tfdqt.games.networks import build_q
from tfdqt.games.window import make_window, network_inputs, push
from tfdqt.replay import Steps, make_add, make_replay, make_sampler, steps_spec

CFG = DQNConfig(
    total_steps=1_000,
    num_envs=2,
    chunk=4,
    updates_per_step=0.5,
    batch_size=4,
    replay_size=400,
    learning_starts=16,
    gamma=0.5,
    n_step=2,
    huber_delta=1e6,
)


def window_of(obs, action, reward, discount, first):
    """One window as a batch of one."""
    one = Steps(
        np.array(obs, "f")[:, None],
        np.array(action, "i"),
        np.array(reward, "f"),
        np.array(discount, "f"),
        np.array(first, bool),
    )
    return Steps(*(tf.constant(field[None]) for field in one))


class TestReadingOnce(tf.test.TestCase):
    """One pass over context + n steps in place of two passes over windows."""

    NETWORKS = (
        NetworkConfig(context=6, layers=2, heads=2, width=8, dueling=True),
        NetworkConfig(network="gru", context=6, layers=1, width=8),
        NetworkConfig(context=6, layers=2, heads=2, width=8, places="lag"),
        NetworkConfig(context=6, layers=2, heads=2, width=8, places="lag-start"),
        NetworkConfig(context=6, layers=1, heads=2, width=8, value_scale="log", bins=16),
    )

    def steps(self, first):
        """A batch of two windows of 6 + 2 steps; first: where an episode starts in both."""
        rng = np.random.default_rng(0)
        shape = (2, 8)
        return Steps(
            tf.constant(rng.normal(size=(*shape, 1)), tf.float32),
            tf.constant(rng.integers(0, 2, shape), tf.int32),
            tf.constant(rng.normal(size=shape), tf.float32),
            tf.constant(np.ones(shape), tf.float32),
            tf.constant(np.arange(8) == first) & tf.ones(shape, tf.bool),
        )

    def nets(self, network):
        keras.utils.set_random_seed(0)
        net = flatten_q(build_q(NUMBER, network), NUMBER)
        # Larger than at the start, or nearly nothing depends on the past.
        return net._replace(start=3 * net.start)

    def test_it_is_the_same_where_an_episode_hides_what_else_would_be_seen(self):
        steps = self.steps(first=2)
        steps = steps._replace(discount=tf.where(tf.roll(steps.first, -2, 1), 0.0, 1.0))
        for network, gap_of in zip(self.NETWORKS, itertools.cycle(("target", "online"))):
            net = self.nets(network)
            found = {}
            for once in (False, True):
                cfg = dataclasses.replace(
                    CFG, read_once=once, advantage_learning=0.5, gap_of=gap_of
                )
                target = 0.9 * net.start
                found[once] = dqn.q_learning(net, cfg, net.start, target, steps)[:2]
            self.assertAllClose(found[False][0], found[True][0], rtol=1e-5)
            self.assertAllClose(found[False][1], found[True][1], rtol=1e-4, atol=1e-5)

    def test_a_state_ahead_is_seen_with_the_steps_before_it(self):
        steps = self.steps(first=0)
        for network in self.NETWORKS:
            net = self.nets(network)
            read = dqn.make_read(net, dataclasses.replace(CFG, read_once=True))
            cut = tf.constant([False, True])
            _, q, ahead = read(net.start, steps, cut)
            whole = net.apply(net.start, dqn.replay_inputs(steps, 0, 6))
            self.assertAllClose(q, whole, atol=1e-5)
            # Two steps on, and one where an episode was cut.
            self.assertAllClose(ahead[0, :4], whole[0, 2:], atol=1e-5)
            self.assertAllClose(ahead[1, :5], whole[1, 1:], atol=1e-5)
            # What is n steps on has seen what a window of its own does not hold.
            alone = net.apply(net.start, dqn.replay_inputs(steps, 2, 6))
            self.assertNotAllClose(ahead[0, 0], alone[0, 0], atol=1e-3)

    def test_a_step_of_a_gpt_looks_back_no_further_than_its_context(self):
        network = NetworkConfig(context=3, layers=1, heads=1, width=8)
        net = self.nets(network)
        longer = net.of_steps(5)
        obs = np.random.default_rng(0).normal(size=(1, 5, 1)).astype("float32")
        first = np.zeros((1, 5), "int32")
        q = longer.apply(net.start, dict(obs=obs, first=first))
        obs[0, 0] += 1
        other = longer.apply(net.start, dict(obs=obs, first=first))
        changed = np.abs(q - other).max(axis=(0, 2, 3)) > 1e-6
        self.assertAllEqual(changed, [True, True, True, False, False])

    def test_who_reads_once(self):
        long = NetworkConfig(context=16, layers=1, heads=1, width=8)
        for network, cfg, once in (
            (long, CFG, True),  # 16 is 8 times n_step
            (dataclasses.replace(long, context=15), CFG, False),
            (long, dataclasses.replace(CFG, read_once=False), False),
            (dataclasses.replace(long, every_step=False), CFG, False),
            (NetworkConfig(network="dense", context=16, hidden=(8,)), CFG, False),
        ):
            net = flatten_q(build_q(NUMBER, network), NUMBER)
            self.assertEqual(dqn.reads_once(net, cfg), once)
        with self.assertRaisesRegex(UsageError, "--read-once is for networks that read step"):
            dqn.make_read(net, dataclasses.replace(CFG, read_once=True))


class TestQLearning(tf.test.TestCase):
    def loss(self, steps, context=2, cfg=CFG, slopes=(1.0, 2.0), target_slopes=(4.0, 3.0)):
        net = linear_net(context, slopes)
        target = linear_net(context, target_slopes).start
        return float(dqn.q_learning(net, cfg, net.start, target, steps)[0])

    def test_two_steps_then_bootstrap(self):
        # Online Q(s) = (s, 2s), target Q(s) = (4s, 3s); the online network prefers action 1, so
        # V(s) = 3s.
        # Step 0: 1 + 0.5*2 + 0.25*3*30 = 24.5, Q(10, 0) = 10; step 1: 2 + 0.5*3 + 0.25*3*40 = 33.5,
        # Q(20, 1) = 40.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])
        self.assertAllClose(self.loss(steps), 0.5 * (14.5**2 + 6.5**2) / 2)

    def test_plain_q_learning_takes_the_target_networks_best(self):
        # V(s) = max(4s, 3s) = 4s: step 0: 1 + 1 + 0.25*120 = 32; step 1: 3.5 + 0.25*160 = 43.5.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])
        self.assertAllClose(
            self.loss(steps, cfg=dataclasses.replace(CFG, double=False)), 0.5 * (22**2 + 3.5**2) / 2
        )

    def test_termination_ends_the_return_and_the_reset_step_is_not_learned(self):
        # Step 0 ends the episode: target 1. Step 1 is the last observation (step 2 is a first):
        # left out.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 7, 3, 4], [0, 1, 1, 1], [0, 0, 1, 0])
        self.assertAllClose(self.loss(steps), 0.5 * 9.0**2)

    def test_truncation_bootstraps_from_the_true_last_observation(self):
        # The episode is cut after step 0: its last observation is 20. Target 1 + 0.5*3*20 = 31;
        # step 1 is left out.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 7, 3, 4], [1, 1, 1, 1], [0, 0, 1, 0])
        self.assertAllClose(self.loss(steps), 0.5 * 21.0**2)
        # Cut after step 1: both steps bootstrap one step on: 1 + 0.5*3*20 = 31 and 2 + 0.5*3*30 =
        # 47.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 7, 4], [1, 1, 1, 1], [0, 0, 0, 1])
        self.assertAllClose(self.loss(steps), 0.5 * (21.0**2 + 7.0**2) / 2)

    def test_one_step_where_the_state_says_so(self):
        # As behind a cut: 1 + 0.5*3*20 = 31 and 2 + 0.5*3*30 = 47.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])
        net = linear_net(2, (1.0, 2.0))
        target = linear_net(2, (4.0, 3.0)).start
        one_step = tf.constant(True)
        loss, *_ = dqn.q_learning(net, CFG, net.start, target, steps, one_step=one_step)
        self.assertAllClose(loss, 0.5 * (21.0**2 + 7.0**2) / 2)
        # The update asks its state.
        batch = tf.nest.map_structure(lambda field: field[None], steps)
        state = dqn.first_state(net)._replace(target=target, one_step=one_step)
        with without_xla():
            state, said = dqn.make_update(net, CFG)(state, batch)
        self.assertAllClose(said["loss"], loss)
        self.assertTrue(state.one_step)

    def test_a_lost_life_ends_the_return_but_not_the_episode(self):
        # Discount 0 at step 1 without a first behind it: 1 + 0.5*2 and 2; both steps are learned.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 0, 1, 1], [0, 0, 0, 0])
        self.assertAllClose(self.loss(steps), 0.5 * (8.0**2 + 38.0**2) / 2)

    def test_reward_signs(self):
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [5, -2, 3, 4], [0, 0, 1, 1], [0, 0, 0, 0])
        self.assertAllClose(
            self.loss(steps, cfg=dataclasses.replace(CFG, reward_transform="sign")),
            0.5 * (9.0**2 + 41.0**2) / 2,
        )

    def test_advantage_learning_lowers_the_target_of_the_worse_action(self):
        # Both steps end a return: targets 1 and 2. The target network's Q(s) = (0.04s, 0.03s)
        # prefers action 0, so step 0 keeps its target; at step 1, action 1 lies 0.2 below the best.
        # With (4s, 3s) the gap of 20 counts as 1.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [0, 0, 1, 1], [0, 0, 0, 0])
        cfg = dataclasses.replace(CFG, advantage_learning=0.5)
        self.assertAllClose(
            self.loss(steps, cfg=cfg, target_slopes=(0.04, 0.03)),
            0.5 * (9.0**2 + (2.0 - 0.5 * 0.2 - 40.0) ** 2) / 2,
        )
        self.assertAllClose(self.loss(steps, cfg=cfg), 0.5 * (9.0**2 + (2.0 - 0.5 - 40.0) ** 2) / 2)

    def test_the_gap_may_be_the_online_networks(self):
        # It prefers action 1, by 10 at step 0, which counts as 1; the target network prefers 0.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [0, 0, 1, 1], [0, 0, 0, 0])
        cfg = dataclasses.replace(CFG, advantage_learning=0.5, gap_of="online")
        self.assertAllClose(
            self.loss(steps, cfg=cfg, target_slopes=(0.04, 0.03)),
            0.5 * ((1.0 - 0.5 - 10.0) ** 2 + 38.0**2) / 2,
        )

    def test_slips_lower_the_value_of_the_state_ahead(self):
        # As in the first test, but where the return goes on the target network's gap, s at action
        # 1, costs 0.1 * s / 2:
        # step 0: 1 + 1 + 0.25*(90 - 1.5) = 24.125; step 1: 2 + 1.5 + 0.25*(120 - 2) = 33.
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])
        cfg = dataclasses.replace(CFG, target_epsilon=0.1)
        self.assertAllClose(self.loss(steps, cfg=cfg), 0.5 * (14.125**2 + 7.0**2) / 2)
        # A gap of 30 that was widened by 0.5 * 1 stands for 29.5, one of 40 for 39.5: 0.025 and
        # 0.025 less cost. Advantage learning takes 0.5 * 1 from the target of action 1.
        both = dataclasses.replace(cfg, advantage_learning=0.5)
        more = 0.25 * 0.025
        self.assertAllClose(
            self.loss(steps, cfg=both),
            0.5 * ((14.125 + more) ** 2 + (7.0 - more + 0.5) ** 2) / 2,
            rtol=1e-5,
        )

    def test_slips_with_quantiles(self):
        # Quantiles (Q, Q + 2) of each action have the same gaps as their means.
        inputs = dict(
            obs=keras.Input((2, 1), name="obs"),
            first=keras.Input((2,), dtype="int32", name="first"),
        )
        start = keras.initializers.Constant([[1.0, 1.0, 2.0, 2.0]])
        q = keras.layers.Dense(
            4, kernel_initializer=start, bias_initializer=keras.initializers.Constant([0, 2, 0, 2])
        )(inputs["obs"])
        net = flatten_q(keras.Model(inputs, keras.layers.Reshape((2, 2, 2))(q)), NUMBER)
        steps = window_of([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])

        def td_error(cfg):
            return float(dqn.q_learning(net, cfg, net.start, net.start, steps)[2]["td_error"])

        # Means are (s + 1, 2s + 1): targets 2 + 0.25*61 = 17.25 and 3.5 + 0.25*81 = 23.75 against
        # 11 and 41; with slips the first is 0.25 * 0.1 * 15 lower, the second 0.25 * 0.1 * 20.
        self.assertAllClose(td_error(CFG), (6.25 + 17.25) / 2)
        self.assertAllClose(
            td_error(dataclasses.replace(CFG, target_epsilon=0.1)), (6.25 - 0.375 + 17.25 + 0.5) / 2
        )

    def test_gradient_by_finite_differences_and_none_for_fixed_weights(self):
        network = NetworkConfig(context=2, layers=1, heads=1, width=4, standardize=True)
        net = flatten_q(build_q(NUMBER, network), NUMBER)
        steps = window_of(
            [0.1, 0.2, 0.3, 0.4], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0]
        )
        target = net.start * 0.9
        direction = tf.constant(np.random.default_rng(0).normal(size=net.start.shape), tf.float32)
        trained = np.r_[np.ones(len(direction) - 2), 0, 0].astype(
            "float32"
        )  # mean and scale of the one feature are fixed
        direction = direction * trained
        h = 1e-3
        # A target that no action choice can flip: the finite difference must not move the targets,
        # so double=False.
        cfg = dataclasses.replace(CFG, double=False)
        _, gradient, _ = dqn.q_learning(net, cfg, net.start, target, steps)
        above = dqn.q_learning(net, cfg, net.start + h * direction, target, steps)[0]
        below = dqn.q_learning(net, cfg, net.start - h * direction, target, steps)[0]
        self.assertAllClose(
            (above - below) / (2 * h), tf.reduce_sum(gradient * direction), rtol=2e-2, atol=1e-3
        )
        self.assertAllEqual(gradient[-2:], [0, 0])

    def test_histograms_are_learned_by_their_logits(self):
        network = NetworkConfig(
            context=2, layers=1, heads=1, width=4, value_scale="log", bins=16, dueling=True
        )
        net = flatten_q(build_q(NUMBER, network), NUMBER)
        net = net._replace(start=3 * net.start)
        steps = window_of(
            [0.1, 0.2, 0.3, 0.4], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0]
        )
        inputs = dqn.replay_inputs(steps, 0, 2)
        logits = net.logits(net.start, inputs)
        self.assertEqual(logits.shape[-1], 16)
        q = net.apply(net.start, inputs)
        self.assertAllClose(q[..., 0], net.histogram.mean(logits))

        cfg = dataclasses.replace(CFG, double=False, advantage_learning=0.5, target_epsilon=0.1)
        _, gradient, _ = dqn.q_learning(net, cfg, net.start, 0.9 * net.start, steps)
        direction = np.random.default_rng(0).normal(size=net.start.shape).astype("float32")
        above, below = (
            dqn.q_learning(net, cfg, net.start + h * direction, 0.9 * net.start, steps)[0]
            for h in (1e-3, -1e-3)
        )
        slope = (above - below) / 2e-3
        self.assertAllClose(slope, tf.reduce_sum(gradient * direction), rtol=2e-2, atol=1e-3)
        # Of equal weights the gap is the same, whosever it is.
        losses = {
            float(dqn.q_learning(net, each, net.start, net.start, steps)[0])
            for each in (cfg, dataclasses.replace(cfg, gap_of="online"))
        }
        self.assertLess(max(losses) - min(losses), 1e-6)


class TestUpdate(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.net = linear_net(2, (1.0, 2.0))
        shape = (3, 4, 4)  # K, B, C + n
        self.steps = Steps(
            tf.constant(rng.normal(size=(*shape, 1)), tf.float32),
            tf.constant(rng.integers(0, 2, shape), tf.int32),
            tf.constant(rng.normal(size=shape), tf.float32),
            tf.ones(shape),
            tf.zeros(shape, tf.bool),
        )

    def test_one_trace_and_as_many_updates_as_batches(self):
        update = dqn.make_update(self.net, CFG)
        state = dqn.first_state(self.net)
        for _ in range(3):
            state, diagnostics = update(state, self.steps)
        self.assertEqual(update.experimental_get_tracing_count(), 1)
        self.assertEqual(int(state.updates), 9)
        self.assertGreater(float(diagnostics["grad_norm"]), 0)

    def test_the_clipped_gradient_is_the_one_applied(self):
        update = dqn.make_update(self.net, dataclasses.replace(CFG, max_grad_norm=1e-3))
        one = tf.nest.map_structure(lambda field: field[:1], self.steps)
        state, diagnostics = update(dqn.first_state(self.net), one)
        self.assertGreater(float(diagnostics["grad_norm"]), 1e-2)
        self.assertAllClose(
            tf.norm(state.optimizer[0]), 0.1 * 1e-3
        )  # Adam's first moment after one step: 0.1 g

    def compiled(self, cfg):
        with without_xla():
            return dqn.make_update(self.net, cfg)

    def test_a_batch_in_parts_is_learned_from_as_whole(self):
        start = dqn.first_state(self.net)
        whole, said = self.compiled(CFG)(start, self.steps)
        large = self.net._replace(attention=2**30)
        with without_xla(), mock.patch.object(cost, "LEAST_PART", 2):
            found, said_too = dqn.make_update(large, CFG)(start, self.steps)
        self.assertAllClose(found.online, whole.online, rtol=0, atol=1e-5)
        self.assertAllClose(said_too, said, rtol=1e-4)

    def test_xla_updates_a_gru_as_tensorflow_does(self):
        network = NetworkConfig(network="gru", context=2, layers=1, width=4)
        net = flatten_q(build_q(NUMBER, network), NUMBER)
        start = dqn.first_state(net)
        state, _ = dqn.make_update(net, CFG)(start, self.steps)
        with without_xla():
            expected, _ = dqn.make_update(net, CFG)(start, self.steps)
        self.assertAllClose(state.online, expected.online, rtol=0, atol=1e-5)
        self.assertNotAllClose(state.online, start.online, rtol=0, atol=1e-4)

    def test_target_follows_by_polyak_or_copy(self):
        start = dqn.first_state(self.net)
        state, _ = self.compiled(dataclasses.replace(CFG, target_tau=0.25))(
            start, tf.nest.map_structure(lambda field: field[:1], self.steps)
        )
        self.assertAllClose(state.target, 0.75 * start.target + 0.25 * state.online)
        copied = dataclasses.replace(CFG, target_tau=1.0, target_every=3)
        two, _ = self.compiled(copied)(
            start, tf.nest.map_structure(lambda field: field[:2], self.steps)
        )
        self.assertAllEqual(two.target, start.target)
        three, _ = self.compiled(copied)(start, self.steps)
        self.assertAllEqual(three.target, three.online)

    def test_an_average_of_the_online_weights_acts(self):
        start = dqn.first_state(self.net)
        one = tf.nest.map_structure(lambda field: field[:1], self.steps)
        state, _ = self.compiled(dataclasses.replace(CFG, acting_tau=0.25))(start, one)
        self.assertAllClose(state.acting, 0.75 * start.acting + 0.25 * state.online)
        state, _ = self.compiled(CFG)(start, one)
        self.assertAllEqual(state.acting, state.online)

    def test_learning_rate_falls_to_its_end(self):
        cfg = dataclasses.replace(
            CFG, total_steps=6, updates_per_step=0.5, final_learning_rate=1e-12, max_grad_norm=1e6
        )
        # All 3 updates of the run.
        state, _ = self.compiled(cfg)(dqn.first_state(self.net), self.steps)
        after, _ = self.compiled(cfg)(state, self.steps)
        self.assertAllClose(after.online, state.online, rtol=0, atol=1e-9)
        self.assertNotAllClose(state.online, self.net.start, rtol=0, atol=1e-5)


LEARN = DQNConfig(
    total_steps=4_000,
    num_envs=4,
    chunk=4,
    updates_per_step=0.5,
    batch_size=32,
    replay_size=4_000,
    learning_starts=100,
    gamma=0.5,
    n_step=2,
    learning_rate=3e-3,
    final_learning_rate=3e-4,
    epsilon_end=0.5,
    target_tau=0.05,
)


class TestTraining(tf.test.TestCase):
    small = NetworkConfig(context=2, layers=1, heads=2, width=16)
    dense = NetworkConfig(network="dense", context=1, hidden=(32,))
    dense_history = NetworkConfig(network="dense", context=2, hidden=(16,))  # soon compiled

    def train(self, env_fn, cfg=LEARN, network=small, workers=0, **more):
        q_fn = functools.partial(build_q, cfg=network)
        return dqn.dqn(env_fn, q_fn, cfg, workers=workers, **more)

    def values(self, env_fn, network, n_step, **more):
        cfg = dataclasses.replace(LEARN, n_step=n_step, **more)
        state, net, progress = self.train(env_fn, cfg, network)
        window = make_window(env_info(env_fn()), 3, net.context)
        push(window, np.arange(3)[:, None], np.ones(3), -1)
        return mean_q(net.apply(state.online, network_inputs(window)))[:, -1].numpy(), progress

    def test_rewards_of_any_size_are_learned_from_alike_in_their_units(self):
        class Poor(Corridor):
            def step(self, action):
                obs, reward, *rest = super().step(action)
                return obs, reward / 1024, *rest

        cfg = dataclasses.replace(LEARN, total_steps=640)
        network = dataclasses.replace(self.dense_history, reward_units=True)
        with without_xla():
            rich, net, _ = self.train(Corridor, cfg, network)
            poor, _, _ = self.train(Poor, cfg, network)
        units = [float(state.online[net.value_unit]) for state in (rich, poor)]
        self.assertAllEqual(units, [1, 1 / 1024])
        learned = len(rich.online) - 1
        self.assertAllClose(rich.online[:learned], poor.online[:learned])

    def test_learning_waits_for_a_first_reward_to_tell_its_units(self):
        class Late(Corridor):
            taken = 0

            def step(self, action):
                self.taken += 1
                obs, reward, *rest = super().step(action)
                return obs, reward / 1024 * (self.taken > 60), *rest

        class Never(Corridor):
            def step(self, action):
                obs, _, *rest = super().step(action)
                return obs, 0.0, *rest

        cfg = dataclasses.replace(LEARN, total_steps=640)
        network = dataclasses.replace(self.dense_history, reward_units=True)
        rows = []
        with without_xla():
            late, net, _ = self.train(Late, cfg, network, log=rows.append)
            never, _, _ = self.train(Never, cfg, network)
        self.assertEqual(float(late.online[net.value_unit]), 1 / 1024)
        began = next(row.step for row in rows if row.updates)
        self.assertGreater(began, 60 * cfg.num_envs)
        self.assertGreater(int(late.updates), 0)
        self.assertEqual(int(never.updates), 0)
        self.assertAllEqual(never.online, net.start)

    def test_known_values_of_a_corridor(self):
        # One step from the end 1, then 1/2, then 1/4; a step left costs two steps.
        expected = [[0.125, 0.25], [0.125, 0.5], [0.25, 1.0]]
        for network in (self.small, self.dense):
            # With more steps, exploring actions would enter the returns.
            q, progress = self.values(Corridor, network, n_step=1)
            self.assertAllClose(q, expected, atol=0.06)
            self.assertGreater(progress.games, 50)

    def test_rewards_are_summed_where_they_are_steady(self):
        class Almost(Forever):
            def step(self, action):
                obs, reward, *rest = super().step(action)
                return obs, reward + 0.05 * self.steps, *rest

        cfg = dataclasses.replace(LEARN, total_steps=320)
        for env_fn, asked, one_step in (
            (Forever, True, False),
            (Almost, True, True),
            (Almost, False, False),
            (Corridor, True, True),
        ):
            with self.subTest(env=env_fn.__name__, asked=asked), without_xla():
                cfg = dataclasses.replace(cfg, n_step_if_steady=asked)
                state, _, _ = self.train(env_fn, cfg, self.dense_history)
                self.assertGreater(int(state.updates), 0)
                self.assertEqual(bool(state.one_step), one_step)

    def test_truncation_does_not_end_the_return(self):
        q, _ = self.values(Forever, self.dense, n_step=2)
        self.assertAllClose(q, np.full((3, 2), 2.0), atol=0.15)

    def test_what_is_learned_on_another_scale_are_values_all_the_same(self):
        class Rich(Forever):
            def step(self, action):
                obs, reward, *rest = super().step(action)
                return obs, 100 * reward, *rest

        for how in (
            dict(value_scale="sqrt"),
            dict(value_scale="log", bins=64, dueling=True),
            dict(reward_units=True),
        ):
            with self.subTest(**how):
                scaled = dataclasses.replace(self.dense, **how)
                q, _ = self.values(Rich, scaled, n_step=2, hold=8)
                self.assertAllClose(q, np.full((3, 2), 200.0), rtol=0.1)

    def test_same_seed_same_run_whatever_the_workers(self):
        cfg = dataclasses.replace(LEARN, total_steps=640)
        logs = []
        states = []
        for workers, seed in ((0, 3), (2, 3), (0, 4)):
            rows = []
            how = dict(seed=seed, workers=workers, log=rows.append)
            with without_xla():
                states.append(self.train(Corridor, cfg, self.dense_history, **how)[0])
            logs.append([tuple(row) for row in rows])
        self.assertAllEqual(states[0].online, states[1].online)
        self.assertAllEqual(states[0].optimizer[1], states[1].optimizer[1])
        np.testing.assert_equal(logs[0], logs[1])
        self.assertNotAllEqual(states[0].online, states[2].online)

    def test_features_that_seldom_change_are_found_in_the_data(self):
        # Within an episode the cell changes at every step but those against the wall, the number of
        # the episode never.
        class Numbered(Corridor):
            observation_space = gymnasium.spaces.Box(0, 255, (2,), np.uint8)
            episode = 0

            def reset(self, **more):
                self.episode += 1
                return self.shown(super().reset(**more)[0]), {}

            def step(self, action):
                cell, *rest = super().step(action)
                return self.shown(cell), *rest

            def shown(self, cell):
                return np.array([cell, self.episode % 256], np.uint8)

        def run(least):
            network = dataclasses.replace(self.small, min_change=least)
            cfg = dataclasses.replace(LEARN, total_steps=160)
            with without_xla():
                state, net, _ = self.train(Numbered, cfg, network)
            return net, net.unflatten(state.online)[1]

        net, (rate,) = run(0.001)
        self.assertAllEqual(features_shown(net.model), [0])
        self.assertEqual(rate[1], 0)
        self.assertBetween(256 * float(rate[0]), 0.3, 0.7)
        with self.assertRaisesRegex(UsageError, "lower --min-change"):
            run(1.0)

    def test_resume_in_process_equals_an_unbroken_run(self):
        # Corridor offers no state of its own; with get_state and set_state it does.
        cfg = dataclasses.replace(LEARN, total_steps=640, hold=9)
        network = dataclasses.replace(self.small, standardize=True, min_change=0.1)
        kept = {}

        def save(step, make, last=False):
            if step == 320:
                kept.update(make())

        with without_xla():
            whole, _, end = self.train(Numbered, cfg, network, save=save)
            again, _, end2 = self.train(Numbered, cfg, network, saved=kept)
        for one, two in zip(tf.nest.flatten(whole), tf.nest.flatten(again)):
            self.assertAllEqual(one, two)
        self.assertEqual(end, end2)

    def test_a_failing_environment_stops_the_run_after_saving(self):
        saves = []
        rows = []

        def save(step, make, last=False):
            if last:
                saves.append((step, make()))

        network = NetworkConfig(network="dense", context=1, hidden=(4,))
        with without_xla(), self.assertRaisesRegex(EnvFailure, "the robot fell over"):
            cfg = dataclasses.replace(LEARN, learning_starts=32)
            self.train(Failing, cfg, network, workers=1, save=save, log=rows.append)
        ((step, tree),) = saves
        self.assertGreater(step, 100)
        self.assertEqual(tree["envs"], [None] * 4)
        self.assertEqual(tree["progress"]["step"], step)
        # It is the state of the last whole iteration.
        self.assertEqual(rows[-1].step, step)
        *_, updates, _ = tree["learner"]
        self.assertEqual(updates, rows[-1].updates)

    def test_too_small_a_replay_is_refused(self):
        with self.assertRaisesRegex(UsageError, "--replay-size"):
            self.train(Corridor, dataclasses.replace(LEARN, replay_size=16), NetworkConfig())

    def test_a_network_without_an_axis_of_quantiles_is_refused(self):
        def q_fn(info):
            inputs = dict(obs=keras.Input((2, 1), name="obs", dtype="int32"))
            return keras.Model(inputs, keras.layers.Dense(2)(inputs["obs"]))

        with self.assertRaisesRegex(UsageError, "ends with an axis of size 1"):
            dqn.dqn(Corridor, q_fn, LEARN, workers=0)


class TestActing(tf.test.TestCase):
    def test_the_actor_is_shown_what_the_learner_samples(self):
        info = env_info(Corridor())
        cfg = dataclasses.replace(CFG, num_envs=1, chunk=30)
        network = NetworkConfig(context=3, layers=1, heads=1, width=8, prev_action=True)
        net = flatten_q(build_q(info, network), info)
        seen = []
        act = make_act(net)

        def watch(weights):
            def look(inputs):
                seen.append({key: value.copy() for key, value in inputs.items()})
                return act(weights, inputs).numpy()

            return look

        stepper = make_stepper(Corridor, info, 3, 1, seed=0)
        steps, games = dqn.make_collect(watch, stepper, info, cfg)(net.start, 0)
        self.assertGreater(len(games), 0)
        replay = make_replay(steps_spec(info), 1, 30)
        make_add(replay)(steps)
        sample = make_sampler(replay, 3)
        stored = {
            tuple(row.tobytes() for row in np.asarray(steps.obs[i : i + 3])) for i in range(28)
        }
        drawn = tf.function(lambda: sample(16, tf.constant([0, 0], tf.int64)))()
        self.assertIn(tuple(row.tobytes() for row in drawn.obs[0].numpy()), stored)
        for end in range(3, 31):  # the window that ends with step end - 1
            part = tf.nest.map_structure(
                lambda field: tf.constant(np.moveaxis(field[end - 3 : end], 1, 0)), steps
            )
            learned = net.apply(net.start, dqn.replay_inputs(part, 0, 3))
            acted = net.apply(net.start, seen[end - 1])
            self.assertAllClose(learned[:, -1], acted[:, -1])


if __name__ == "__main__":
    tf.test.main()
