"""DQN: the loss on windows by hand, the compiled update, acting, and an environment with a known answer."""

import dataclasses

import gymnasium
import numpy as np

from tfdqt import dqn, gpt
from tfdqt.acting import make_window, push, shown
from tfdqt.backend import keras, tf
from tfdqt.config import DQNConfig, NetworkConfig, UsageError
from tfdqt.envs import EnvFailure, EnvInfo, env_info
from tfdqt.networks import change_rates, features_shown, flatten_model, known_of, make_act
from tfdqt.replay import Steps, make_add, make_replay, make_sampler, steps_spec
from tfdqt.vec_envs import make_vec_env

NUMBER = EnvInfo("Number", (1,), "float32", (), 2)
CFG = DQNConfig(total_steps=1_000, num_envs=2, chunk=4, updates_per_step=0.5, batch_size=4, replay_size=400, learning_starts=16,
                gamma=0.5, n_step=2, huber_delta=1e6)


def linear_networks(context, slopes):
    """Q(s, a) = slopes[a] * s at every step, whatever came before."""
    inputs = dict(obs=keras.Input((context, 1), name="obs"), first=keras.Input((context,), dtype="int32", name="first"))
    start = keras.initializers.Constant([slopes])
    return flatten_model(keras.Model(inputs, keras.layers.Dense(2, use_bias=False, kernel_initializer=start)(inputs["obs"])))


def window(obs, action, reward, discount, first):
    """One window as a batch of one."""
    one = Steps(np.array(obs, "f")[:, None], np.array(action, "i"), np.array(reward, "f"), np.array(discount, "f"), np.array(first, bool))
    return Steps(*(tf.constant(field[None]) for field in one))


class TestQLearning(tf.test.TestCase):

    def loss(self, steps, context=2, cfg=CFG, slopes=(1.0, 2.0), target_slopes=(4.0, 3.0)):
        networks = linear_networks(context, slopes)
        target = linear_networks(context, target_slopes).start
        return float(dqn.q_learning(networks, cfg, networks.start, target, steps)[0])

    def test_two_steps_then_bootstrap(self):
        # Online Q(s) = (s, 2s), target Q(s) = (4s, 3s); the online network prefers action 1, so V(s) = 3s.
        # Step 0: 1 + 0.5*2 + 0.25*3*30 = 24.5, Q(10, 0) = 10; step 1: 2 + 0.5*3 + 0.25*3*40 = 33.5, Q(20, 1) = 40.
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])
        self.assertAllClose(self.loss(steps), 0.5 * (14.5 ** 2 + 6.5 ** 2) / 2)

    def test_plain_q_learning_takes_the_target_networks_best(self):
        # V(s) = max(4s, 3s) = 4s: step 0: 1 + 1 + 0.25*120 = 32; step 1: 3.5 + 0.25*160 = 43.5.
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])
        self.assertAllClose(self.loss(steps, cfg=dataclasses.replace(CFG, double=False)), 0.5 * (22 ** 2 + 3.5 ** 2) / 2)

    def test_termination_ends_the_return_and_the_reset_step_is_not_learned(self):
        # Step 0 ends the episode: target 1. Step 1 is the last observation (step 2 is a first): left out.
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 7, 3, 4], [0, 1, 1, 1], [0, 0, 1, 0])
        self.assertAllClose(self.loss(steps), 0.5 * 9.0 ** 2)

    def test_truncation_bootstraps_from_the_true_last_observation(self):
        # The episode is cut after step 0: its last observation is 20. Target 1 + 0.5*3*20 = 31; step 1 is left out.
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 7, 3, 4], [1, 1, 1, 1], [0, 0, 1, 0])
        self.assertAllClose(self.loss(steps), 0.5 * 21.0 ** 2)
        # Cut after step 1: both steps bootstrap one step on: 1 + 0.5*3*20 = 31 and 2 + 0.5*3*30 = 47.
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 7, 4], [1, 1, 1, 1], [0, 0, 0, 1])
        self.assertAllClose(self.loss(steps), 0.5 * (21.0 ** 2 + 7.0 ** 2) / 2)

    def test_a_lost_life_ends_the_return_but_not_the_episode(self):
        # Discount 0 at step 1 without a first behind it: 1 + 0.5*2 and 2; both steps are learned.
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 0, 1, 1], [0, 0, 0, 0])
        self.assertAllClose(self.loss(steps), 0.5 * (8.0 ** 2 + 38.0 ** 2) / 2)

    def test_reward_signs(self):
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [5, -2, 3, 4], [0, 0, 1, 1], [0, 0, 0, 0])
        self.assertAllClose(self.loss(steps, cfg=dataclasses.replace(CFG, reward_transform="sign")), 0.5 * (9.0 ** 2 + 41.0 ** 2) / 2)

    def test_advantage_learning_lowers_the_target_of_the_worse_action(self):
        # Both steps end a return: targets 1 and 2. The target network's Q(s) = (0.04s, 0.03s) prefers action 0, so step 0 keeps
        # its target; at step 1, action 1 lies 0.2 below the best. With (4s, 3s) the gap of 20 counts as 1.
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [0, 0, 1, 1], [0, 0, 0, 0])
        cfg = dataclasses.replace(CFG, advantage_learning=0.5)
        self.assertAllClose(self.loss(steps, cfg=cfg, target_slopes=(0.04, 0.03)), 0.5 * (9.0 ** 2 + (2.0 - 0.5 * 0.2 - 40.0) ** 2) / 2)
        self.assertAllClose(self.loss(steps, cfg=cfg), 0.5 * (9.0 ** 2 + (2.0 - 0.5 - 40.0) ** 2) / 2)

    def test_slips_lower_the_value_of_the_state_ahead(self):
        # As in the first test, but where the return goes on the target network's gap, s at action 1, costs 0.1 * s / 2:
        # step 0: 1 + 1 + 0.25*(90 - 1.5) = 24.125; step 1: 2 + 1.5 + 0.25*(120 - 2) = 33.
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])
        cfg = dataclasses.replace(CFG, target_epsilon=0.1)
        self.assertAllClose(self.loss(steps, cfg=cfg), 0.5 * (14.125 ** 2 + 7.0 ** 2) / 2)
        # A gap of 30 that was widened by 0.5 * 1 stands for 29.5, one of 40 for 39.5: 0.025 and 0.025 less cost. Advantage learning
        # takes 0.5 * 1 from the target of action 1.
        both = dataclasses.replace(cfg, advantage_learning=0.5)
        more = 0.25 * 0.025
        self.assertAllClose(self.loss(steps, cfg=both), 0.5 * ((14.125 + more) ** 2 + (7.0 - more + 0.5) ** 2) / 2, rtol=1e-5)

    def test_slips_with_quantiles(self):
        # Quantiles (Q, Q + 2) of each action have the same gaps as their means.
        inputs = dict(obs=keras.Input((2, 1), name="obs"), first=keras.Input((2,), dtype="int32", name="first"))
        start = keras.initializers.Constant([[1.0, 1.0, 2.0, 2.0]])
        q = keras.layers.Dense(4, kernel_initializer=start, bias_initializer=keras.initializers.Constant([0, 2, 0, 2]))(inputs["obs"])
        networks = flatten_model(keras.Model(inputs, keras.layers.Reshape((2, 2, 2))(q)))
        steps = window([10, 20, 30, 40], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])

        def td_error(cfg):
            return float(dqn.q_learning(networks, cfg, networks.start, networks.start, steps)[2]["td_error"])

        # Means are (s + 1, 2s + 1): targets 2 + 0.25*61 = 17.25 and 3.5 + 0.25*81 = 23.75 against 11 and 41; with slips the first is
        # 0.25 * 0.1 * 15 lower, the second 0.25 * 0.1 * 20.
        self.assertAllClose(td_error(CFG), (6.25 + 17.25) / 2)
        self.assertAllClose(td_error(dataclasses.replace(CFG, target_epsilon=0.1)), (6.25 - 0.375 + 17.25 + 0.5) / 2)

    def test_gradient_by_finite_differences_and_none_for_fixed_weights(self):
        info = EnvInfo("Number", (1,), "float32", (), 2)
        networks = flatten_model(gpt.build_q(info, NetworkConfig(context=2, layers=1, heads=1, width=4, standardize=True)))
        steps = window([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], [0, 0, 0, 0])
        target = networks.start * 0.9
        direction = tf.constant(np.random.default_rng(0).normal(size=networks.start.shape), tf.float32)
        trained = np.r_[np.ones(len(direction) - 2), 0, 0].astype("float32")  # mean and scale of the one feature are fixed
        direction = direction * trained
        h = 1e-3
        # A target that no action choice can flip: the finite difference must not move the targets, so double=False.
        cfg = dataclasses.replace(CFG, double=False)
        _, gradient, _ = dqn.q_learning(networks, cfg, networks.start, target, steps)
        above = dqn.q_learning(networks, cfg, networks.start + h * direction, target, steps)[0]
        below = dqn.q_learning(networks, cfg, networks.start - h * direction, target, steps)[0]
        self.assertAllClose((above - below) / (2 * h), tf.reduce_sum(gradient * direction), rtol=2e-2, atol=1e-3)
        self.assertAllEqual(gradient[-2:], [0, 0])


class TestUpdate(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.networks = linear_networks(2, (1.0, 2.0))
        shape = (3, 4, 4)  # K, B, C + n
        self.steps = Steps(tf.constant(rng.normal(size=(*shape, 1)), tf.float32), tf.constant(rng.integers(0, 2, shape), tf.int32),
                           tf.constant(rng.normal(size=shape), tf.float32), tf.ones(shape), tf.zeros(shape, tf.bool))

    def test_one_trace_and_as_many_updates_as_batches(self):
        update = dqn.make_update(self.networks, CFG)
        state = dqn.first_state(self.networks)
        for _ in range(3):
            state, diagnostics = update(state, self.steps)
        self.assertEqual(update.experimental_get_tracing_count(), 1)
        self.assertEqual(int(state.updates), 9)
        self.assertGreater(float(diagnostics["grad_norm"]), 0)

    def test_the_clipped_gradient_is_the_one_applied(self):
        update = dqn.make_update(self.networks, dataclasses.replace(CFG, max_grad_norm=1e-3))
        one = tf.nest.map_structure(lambda field: field[:1], self.steps)
        state, diagnostics = update(dqn.first_state(self.networks), one)
        self.assertGreater(float(diagnostics["grad_norm"]), 1e-2)
        self.assertAllClose(tf.norm(state.optimizer[0]), 0.1 * 1e-3)  # Adam's first moment after one step: 0.1 g

    def test_target_follows_by_polyak_or_copy(self):
        start = dqn.first_state(self.networks)
        state, _ = dqn.make_update(self.networks, dataclasses.replace(CFG, target_tau=0.25))(
            start, tf.nest.map_structure(lambda field: field[:1], self.steps))
        self.assertAllClose(state.target, 0.75 * start.target + 0.25 * state.online)
        copied = dataclasses.replace(CFG, target_tau=1.0, target_every=3)
        two, _ = dqn.make_update(self.networks, copied)(start, tf.nest.map_structure(lambda field: field[:2], self.steps))
        self.assertAllEqual(two.target, start.target)
        three, _ = dqn.make_update(self.networks, copied)(start, self.steps)
        self.assertAllEqual(three.target, three.online)

    def test_an_average_of_the_online_weights_acts(self):
        start = dqn.first_state(self.networks)
        one = tf.nest.map_structure(lambda field: field[:1], self.steps)
        state, _ = dqn.make_update(self.networks, dataclasses.replace(CFG, acting_tau=0.25))(start, one)
        self.assertAllClose(state.acting, 0.75 * start.acting + 0.25 * state.online)
        state, _ = dqn.make_update(self.networks, CFG)(start, one)
        self.assertAllEqual(state.acting, state.online)

    def test_learning_rate_falls_to_its_end(self):
        cfg = dataclasses.replace(CFG, total_steps=6, updates_per_step=0.5, final_learning_rate=1e-12, max_grad_norm=1e6)
        state, _ = dqn.make_update(self.networks, cfg)(dqn.first_state(self.networks), self.steps)  # all 3 updates of the run
        after, _ = dqn.make_update(self.networks, cfg)(state, self.steps)
        self.assertAllClose(after.online, state.online, rtol=0, atol=1e-9)
        self.assertNotAllClose(state.online, self.networks.start, rtol=0, atol=1e-5)


class Corridor(gymnasium.Env):
    """Cells 0 to 3; action 1 moves right, 0 left; reaching cell 3 pays 1 and ends. Cut after `limit` steps."""

    observation_space = gymnasium.spaces.Discrete(4)
    action_space = gymnasium.spaces.Discrete(2)
    limit = 20

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = 0, 0
        return self.cell, {}

    def step(self, action):
        self.cell, self.steps = max(0, self.cell + (1 if action else -1)), self.steps + 1
        return self.cell, float(self.cell == 3), self.cell == 3, self.steps >= self.limit, {}


class Forever(Corridor):
    """Pays 1 a step and is only ever cut: with gamma 0.5 every state is worth 2, however short the episodes."""

    limit = 3

    def step(self, action):
        obs, _, _, truncated, info = super().step(action)
        return min(obs, 2), 1.0, False, truncated, info


class Failing(Corridor):
    """Raises in the middle of a run."""

    calls = 0

    def step(self, action):
        self.calls += 1
        if self.calls > 60:
            raise RuntimeError("the robot fell over")
        return super().step(action)


LEARN = DQNConfig(total_steps=4_000, num_envs=4, chunk=4, updates_per_step=0.5, batch_size=32, replay_size=4_000, learning_starts=100,
                  gamma=0.5, n_step=2, learning_rate=3e-3, final_learning_rate=3e-4, epsilon_end=0.5, target_tau=0.05)


class TestTraining(tf.test.TestCase):

    def values(self, env_fn, network, n_step):
        cfg = dataclasses.replace(LEARN, n_step=n_step)
        state, networks, progress = dqn.dqn(env_fn, lambda info: gpt.build_q(info, network), cfg, workers=0)
        window = make_window(env_info(env_fn()), 3, networks.context)
        push(window, np.arange(3)[:, None], np.ones(3), -1)
        return networks.apply(state.online, shown(window))[:, -1].numpy(), progress

    def test_known_values_of_a_corridor(self):
        # One step from the end 1, then 1/2, then 1/4; a step left costs two steps.
        expected = [[0.125, 0.25], [0.125, 0.5], [0.25, 1.0]]
        for network in (NetworkConfig(context=2, layers=1, heads=2, width=16), NetworkConfig(network="dense", context=1, hidden=(32,))):
            q, progress = self.values(Corridor, network, n_step=1)  # with more, exploring actions would enter the returns
            self.assertAllClose(q, expected, atol=0.06)
            self.assertGreater(progress.games, 50)

    def test_truncation_does_not_end_the_return(self):
        q, _ = self.values(Forever, NetworkConfig(network="dense", context=1, hidden=(32,)), n_step=2)
        self.assertAllClose(q, np.full((3, 2), 2.0), atol=0.15)

    def test_same_seed_same_run_whatever_the_workers(self):
        cfg = dataclasses.replace(LEARN, total_steps=640)
        network = NetworkConfig(context=2, layers=1, heads=2, width=16)
        logs, states = [], []
        for workers, seed in ((0, 3), (2, 3), (0, 4)):
            logs.append([])
            states.append(dqn.dqn(
                Corridor, lambda info: gpt.build_q(info, network), cfg, seed=seed, workers=workers, log=logs[-1].append)[0])
        self.assertAllEqual(states[0].online, states[1].online)
        self.assertAllEqual(states[0].optimizer[1], states[1].optimizer[1])
        np.testing.assert_equal([tuple(row) for row in logs[0]], [tuple(row) for row in logs[1]])
        self.assertNotAllEqual(states[0].online, states[2].online)

    def test_features_that_seldom_change_are_found_in_the_data(self):
        # Within an episode the cell changes at every step but those against the wall, the number of the episode never.
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
            network = NetworkConfig(context=2, layers=1, heads=2, width=16, min_change=least)
            state, networks, _ = dqn.dqn(Numbered, lambda info: gpt.build_q(info, network), dataclasses.replace(LEARN, total_steps=160),
                                         workers=0)
            return networks, networks.split(state.online)[1]

        networks, (rate,) = run(0.001)
        self.assertAllEqual(features_shown(networks.model), [0])
        self.assertEqual(rate[1], 0)
        self.assertBetween(256 * float(rate[0]), 0.3, 0.7)
        with self.assertRaisesRegex(UsageError, "lower --min-change"):
            run(1.0)

    def test_how_often_features_change_by_hand(self):
        info = EnvInfo("Pair", (2,), "float32", (), 2)
        networks = flatten_model(gpt.build_q(info, NetworkConfig(context=1, layers=1, heads=1, width=4, min_change=0.1)))
        # Of three pairs of steps the second spans two episodes and does not count. The first feature has a range of 4.
        obs, first = np.array([[4, 0], [1, 0], [2, 5], [0, 5]], "float32"), np.array([True, False, True, False])
        rate, = known_of(networks, obs, first)
        self.assertAllEqual(rate, [(3 + 2) / 2 / 4, 0])
        self.assertAllEqual(features_shown(networks.model), [0])
        self.assertAllEqual(change_rates(obs.astype("uint8"), first), [(3 + 2) / 2 / 256, 0])
        self.assertAllEqual(change_rates(obs.astype("int32"), first), [1, 0])
        self.assertAllEqual(change_rates(obs, np.ones(4, bool)), [1, 1])  # nothing is known of them

    def test_resume_in_process_equals_an_unbroken_run(self):
        # Corridor offers no state of its own; with get_state and set_state it does.
        class Stateful(Corridor):
            def get_state(self):
                return dict(cell=self.cell, steps=self.steps)

            def set_state(self, state):
                self.cell, self.steps = state["cell"], state["steps"]

        cfg = dataclasses.replace(LEARN, total_steps=640)
        network = NetworkConfig(context=2, layers=1, heads=2, width=16, standardize=True, min_change=0.1)
        kept = {}

        def save(step, make, last=False):
            if step == 320:
                kept.update(make())

        def run(**more):
            return dqn.dqn(Stateful, lambda info: gpt.build_q(info, network), cfg, workers=0, **more)

        whole, _, end = run(save=save)
        again, _, end2 = run(saved=kept)
        for one, two in zip(tf.nest.flatten(whole), tf.nest.flatten(again)):
            self.assertAllEqual(one, two)
        self.assertEqual(end, end2)

    def test_a_failing_environment_stops_the_run_after_saving(self):
        saves = []
        with self.assertRaisesRegex(EnvFailure, "the robot fell over"):
            dqn.dqn(Failing, lambda info: gpt.build_q(info, NetworkConfig(context=1, layers=1, heads=1, width=4)),
                    dataclasses.replace(LEARN, learning_starts=32), workers=1,
                    save=lambda step, make, last=False: saves.append((step, make(), last)) if last else None)
        (step, tree, _), = saves
        self.assertGreater(step, 100)
        self.assertEqual(tree["envs"], [None] * 4)
        self.assertEqual(tree["progress"]["step"], step)

    def test_too_small_a_replay_is_refused(self):
        with self.assertRaisesRegex(UsageError, "--replay-size"):
            dqn.dqn(Corridor, lambda info: gpt.build_q(info, NetworkConfig()), dataclasses.replace(LEARN, replay_size=16), workers=0)


class TestActing(tf.test.TestCase):

    def test_the_actor_is_shown_what_the_learner_samples(self):
        info = env_info(Corridor())
        cfg = dataclasses.replace(CFG, num_envs=1, chunk=30)
        networks = flatten_model(gpt.build_q(info, NetworkConfig(context=3, layers=1, heads=1, width=8, prev_action=True)))
        seen, act = [], make_act(networks)

        def watch(weights, inputs):
            seen.append({key: value.copy() for key, value in inputs.items()})
            return act(weights, inputs)

        vec = make_vec_env(Corridor, info, 1, 0, workers=0)
        window = make_window(info, 1, 3)
        push(window, vec.out["obs"], vec.out["first"], -1)
        steps, games = dqn.make_collect(watch, vec, info, cfg)(networks.start, 0, window, np.random.default_rng(0))
        self.assertGreater(len(games), 0)
        replay = make_replay(steps_spec(info), 1, 30)
        make_add(replay)(steps)
        sample = make_sampler(replay, 3)
        stored = {tuple(row.tobytes() for row in np.asarray(steps.obs[i:i + 3])) for i in range(28)}
        drawn = tf.function(lambda: sample(16, tf.constant([0, 0], tf.int64)))()
        self.assertIn(tuple(row.tobytes() for row in drawn.obs[0].numpy()), stored)
        for end in range(3, 31):  # the window that ends with step end - 1
            part = tf.nest.map_structure(lambda field: tf.constant(np.moveaxis(field[end - 3:end], 1, 0)), steps)
            learned = dqn.window_inputs(part, 0, 3)
            self.assertAllClose(networks.apply(networks.start, learned)[:, -1], networks.apply(networks.start, seen[end - 1])[:, -1])


if __name__ == "__main__":
    tf.test.main()
