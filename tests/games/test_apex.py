"""DQN from actors elsewhere: what the learner makes of chunks, with actors in this process."""

import dataclasses
import functools

import numpy as np

from tests.games.corridor import Corridor
from tests.games.toys import without_xla
from tfdqt.backend import tf
from tfdqt.errors import Diverged, UsageError
from tfdqt.games import apex, dqn
from tfdqt.games.config import NetworkConfig
from tfdqt.games.dqn import DQNConfig
from tfdqt.games.envs import info_of
from tfdqt.games.networks import build_q
from tfdqt.policy import epsilon_ladder
from tfdqt.scale.ray_pool import Chunk, Pool

CFG = DQNConfig(
    total_steps=960,
    num_envs=4,
    chunk=4,
    updates_per_step=0.5,
    batch_size=8,
    replay_size=2_000,
    learning_starts=100,
    gamma=0.5,
    n_step=2,
)
NETWORK = NetworkConfig(network="dense", context=2, hidden=(8,))
Q_FN = functools.partial(build_q, cfg=NETWORK)


class LocalPool:
    """A Pool whose actors play in this process, one after another; every fifth time none has."""

    def __init__(self, make_collect, shares, seed):
        self.seed = seed
        self.shares = shares
        sequences = [np.random.SeedSequence([*seed, i, 0]) for i in range(len(shares))]
        self.collects = [make_collect(*each) for each in zip(shares, sequences)]
        self.broadcasts = []
        self.steps = []
        self.asked = 0
        self.closed = False

    def broadcast(self, weights, version):
        self.broadcasts.append((weights, version))

    def take(self, step):
        self.steps.append(step)
        self.asked += 1
        if self.asked % 5 == 0:
            return None
        weights, version = self.broadcasts[-1]
        collect = self.collects[self.asked % len(self.collects)]
        return Chunk(collect(weights, step), version)

    def close(self):
        self.closed = True


def local_pool(pool):
    """A LocalPool as a Pool."""
    return Pool(pool.broadcast, pool.take, lambda: (len(pool.collects), 0), pool.close)


class TestApex(tf.test.TestCase):
    def train(self, cfg=CFG, actors=2, env_fn=Corridor, **more):
        """-> (what `apex` returns, the pool, the log)."""
        pools = []
        rows = []

        def make_pool(*args):
            pools.append(LocalPool(*args))
            return local_pool(pools[0])

        with without_xla():
            result = apex.apex(
                env_fn,
                Q_FN,
                cfg,
                make_pool=make_pool,
                actors=actors,
                log=rows.append,
                **more,
            )
        return result, pools[0], rows

    def test_it_makes_as_many_updates_as_the_steps_ask_for(self):
        (state, net, progress), pool, rows = self.train(broadcast_every=16)
        self.assertTrue(pool.closed)
        self.assertGreaterEqual(progress.step, CFG.total_steps)
        # Two actors' chunks are of 8 steps in each of two environments; learning begins with the
        # first chunk that fills 100 steps, 112.
        self.assertEqual(apex.steps_in_chunk(CFG, 2), 8)
        self.assertEqual([row.step for row in rows], [16 * (i + 1) for i in range(60)])
        self.assertEqual(rows[6].updates, 0)
        self.assertEqual([row.updates for row in rows[7:]], [8 * (i + 1) for i in range(53)])
        self.assertEqual(int(state.updates), rows[-1].updates)
        self.assertAlmostEqual(rows[-1].replay_ratio, 0.5)
        self.assertTrue(np.isnan(rows[6].loss))
        self.assertTrue(np.isfinite(rows[-1].loss))
        self.assertEqual(progress.games, rows[-1].games)
        self.assertGreater(progress.games, 20)
        # The weights are broadcast after every 16 updates, and a chunk is as old as the last ones.
        versions = [version for _, version in pool.broadcasts]
        self.assertEqual(versions, list(range(0, versions[-1] + 1, 16)))
        self.assertLess(rows[-1].staleness, 16)
        # Epsilon falls before learning begins too: actors are told of every step.
        self.assertEqual(sorted({*pool.steps}), [16 * i for i in range(60)])
        self.assertAllEqual(net.model.get_weights()[0].shape, (8, 8))

    def test_each_environment_is_played_by_one_actor(self):
        _, pool, _ = self.train(dataclasses.replace(CFG, total_steps=64, learning_starts=16))
        self.assertAllEqual(pool.shares, [[0, 1], [2, 3]])

    def test_a_run_that_goes_on_has_new_actors_and_all_it_had_learned(self):
        kept = {}

        def save(step, make, last=False):
            if step == 480:
                kept.update(make())

        self.train(save=save)
        self.assertEqual(kept["envs"], [None] * 4)
        self.assertEqual((kept["life"], kept["began"]), (0, 112))
        self.assertEqual(kept["replay"]["seen"].sum(), 480)
        (state, _, progress), pool, rows = self.train(saved=kept, seed=0)
        self.assertEqual(pool.seed, [0, 4, 1])  # numbers that the first start did not have
        self.assertEqual(rows[0].step, 496)
        self.assertEqual(rows[0].updates, (496 - 112) // 2)
        self.assertEqual(int(state.updates), rows[-1].updates)
        self.assertGreaterEqual(progress.step, CFG.total_steps)

    def test_actors_make_their_networks_by_a_function_of_their_own(self):
        made = []

        def learners(info):
            made.append("learner")
            return Q_FN(info)

        short = dataclasses.replace(CFG, total_steps=32, learning_starts=16)
        with without_xla():
            apex.apex(
                Corridor,
                learners,
                short,
                make_pool=lambda *args: local_pool(LocalPool(*args)),
                actors=2,
                actor_q_fn=Q_FN,
            )
        self.assertEqual(made, ["learner"])

    def test_rewards_that_it_can_not_learn_from_end_it(self):
        class Huge(Corridor):
            def step(self, action):
                obs, _, *rest = super().step(action)
                return obs, 3e38, *rest

        kept = []
        with self.assertRaisesRegex(Diverged, "behind step 112 .*loss"):
            self.train(env_fn=Huge, save=lambda step, make, last: kept.append((step, make())))
        step, saved = kept[-1]
        self.assertEqual(step, 112)
        self.assertTrue(all(np.isfinite(part).all() for part in saved["learner"]))

    def test_a_run_that_would_end_before_its_first_update_is_refused(self):
        for steps, more in ((112, False), (113, True)):
            cfg = dataclasses.replace(CFG, total_steps=steps)
            if more:
                self.assertEqual(int(self.train(cfg)[0][0].updates), 8)
            else:
                with self.assertRaisesRegex(UsageError, "give --total-steps=113 or more"):
                    self.train(cfg)

    def test_what_can_not_be(self):
        for cfg, how, words in (
            (CFG, dict(actors=3), "--num-envs=4 can't be shared evenly by 3 actors"),
            (CFG, dict(broadcast_every=0), "--broadcast-every"),
            (
                dataclasses.replace(CFG, replay_size=24, learning_starts=1),
                {},
                "An actor's chunk of 8",
            ),
        ):
            with self.subTest(how=how), self.assertRaisesRegex(UsageError, words):
                self.train(cfg, **how)

    def test_a_checkpoint_of_environments_in_lockstep_does_not_fit(self):
        kept = {}
        with without_xla():
            cfg = dataclasses.replace(CFG, total_steps=64, learning_starts=16)
            save = lambda step, make, last=False: kept.update(make())  # noqa: E731
            dqn.dqn(Corridor, Q_FN, cfg, workers=0, save=save)
        with self.assertRaisesRegex(UsageError, "does not fit these settings"):
            self.train(saved=dict(kept, life=0, began=None))


class TestChunks(tf.test.TestCase):
    def test_they_hold_as_many_steps_as_an_iteration_in_lockstep(self):
        cfg = DQNConfig(num_envs=64, chunk=8)
        sizes = {actors: apex.steps_in_chunk(cfg, actors) for actors in (1, 2, 8, 16)}
        self.assertEqual(sizes, {1: 8, 2: 16, 8: 64, 16: 64})
        self.assertEqual(apex.steps_in_chunk(dataclasses.replace(cfg, chunk=100), 4), 100)

    def test_an_actor_plays_its_rows_with_their_own_epsilon(self):
        cfg = dataclasses.replace(CFG, chunk=400, epsilon_start=0.0, epsilon_fraction=1e-9)
        info = info_of(Corridor)
        rows = np.array([0, 3])
        with without_xla():
            make = functools.partial(apex.make_actor_collect, Corridor, Q_FN, info, cfg)
            collect = make(rows, np.random.SeedSequence(0))
            other = make(rows, np.random.SeedSequence(0))
            weights = np.zeros(
                Q_FN(info).count_params(), np.float32
            )  # all actions alike: 0 is best
            given, steps, _ = collect(weights, cfg.total_steps)
            self.assertAllEqual(given, rows)
            self.assertAllEqual(other(weights, cfg.total_steps)[1].action, steps.action)
        self.assertEqual(steps.action.shape, (400, 2))
        # A random action is 1 half of the time: epsilons of 0.4 and 0.4^8.
        self.assertAllClose(steps.action.mean(axis=0), epsilon_ladder(4)[rows] / 2, atol=0.06)


if __name__ == "__main__":
    tf.test.main()
