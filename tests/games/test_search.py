"""Games played by a tree search, and the copies that it tries its moves on."""

import types
import unittest
import unittest.mock

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.games.corridor import Corridor, Stateful
from tests.games.test_evaluate import NETWORK, untrained
from tests.games.toys import without_xla
from tfdqt.backend import tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.config import NetworkConfig
from tfdqt.games.copies import AnyStates, QuickStates, states_of
from tfdqt.games.envs import info_of, make_env
from tfdqt.games.evaluate import Replayed
from tfdqt.games.play import play_games
from tfdqt.games.search import Rules, play_searched, rules_of
from tfdqt.games.spaces import MASK_KEY
from tfdqt.games.state import NoState, env_state, make_unsaved
from tfdqt.games.trained import Policy, TrainedRun
from tfdqt.games.vec_envs import env_seeds, game_seed

RULES = Rules(0.9, False, False, 0.0)
MARKOV = NetworkConfig(context=1, layers=1, heads=2, width=8)


def told(info, says, algorithm="dqn", context=1):
    """A TrainedRun whose network says `says(obs [B, C, F]) -> [B, A]`, or [B, A + 1] of a policy.

    What it was shown is in `shown` of its `net`, as [(obs, first, prev_action)].
    """
    shown = []

    def apply(weights, inputs):
        def run(*parts):
            shown.append(tuple(part.numpy() for part in parts))
            return np.asarray(says(parts[0].numpy()), np.float32)

        parts = [inputs[key] for key in ("obs", "first", "prev_action")]
        outputs = tf.py_function(run, parts, tf.float32)
        width = info.num_actions + (algorithm == "ppo")
        outputs = tf.ensure_shape(outputs, [parts[0].shape[0], width])
        return outputs[:, None] if algorithm == "ppo" else outputs[:, None, :, None]

    net = types.SimpleNamespace(
        apply=apply, unflatten=lambda weights: weights, context=context, parts=(), shown=shown
    )
    return TrainedRun(net, tf.zeros(1), info, ALGORITHMS[algorithm], dict(name=info.name), 0)


def always(*q):
    return lambda obs: np.tile(q, (len(obs), 1))


class Markers(Stateful):
    """A corridor in which standing still is possible: of 3 actions the third changes nothing."""

    action_space = spaces.Discrete(3)

    def step(self, action):
        if action == 2:
            self.steps += 1
            return self.cell, 0.0, False, self.steps >= self.limit, {}
        return super().step(action)


class Masked(Stateful):
    """A corridor of 3 actions of which the last, though it seems best, is never legal."""

    action_space = spaces.Discrete(3)

    def reset(self, **more):
        obs, _ = super().reset(**more)
        return obs, {MASK_KEY: np.array([1, 1, 0], np.int8)}

    def step(self, action):
        if action == 2:
            raise AssertionError("an illegal action")
        *rest, _ = super().step(action)
        return *rest, {MASK_KEY: np.array([1, 1, 0], np.int8)}


class Bet(gymnasium.Env):
    """Ten rounds: 0 passes, 1 bets: +1 or -5 by an even chance. Who knows chance wins."""

    observation_space = spaces.Discrete(11)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.round = 0
        return self.round, {}

    def step(self, action):
        self.round += 1
        won = self.draw() < 0.5
        reward = (1.0 if won else -5.0) if action else 0.0
        return self.round, reward, self.round == 10, False, {}

    def draw(self):
        return self.np_random.random()

    def get_state(self):
        return dict(round=self.round)

    def set_state(self, state):
        self.round = state["round"]


class TakenApart(Bet):
    """The same without a state of its own, and with a generator of another kind."""

    get_state = None
    set_state = None

    def reset(self, *, seed=None, options=None):
        answer = super().reset(seed=seed)
        if seed is not None:
            self.np_random = np.random.Generator(np.random.MT19937(seed))
        return answer


class Telling(Bet):
    """The same with a generator of its own, which it takes into its state."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.own = np.random.default_rng(seed)
        return super().reset(seed=seed)

    def draw(self):
        return self.own.random()

    def get_state(self):
        return dict(super().get_state(), own=self.own)

    def set_state(self, state):
        super().set_state(state)
        self.own = state["own"]


class TellingPlainly(Telling):
    """The same with that generator's state as plain values."""

    def get_state(self):
        return dict(super().get_state(), own=self.own.bit_generator.state)

    def set_state(self, state):
        self.round = state["round"]
        self.own.bit_generator.state = state["own"]


class Secret(Stateful):
    """One whose state is in the module."""

    cells = [0]

    def step(self, action):
        Secret.cells[0] += 1
        self.cell = Secret.cells[0] % 3
        return super().step(action)


class Levels(Stateful):
    """Begins where its reset is told to."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = (options or {}).get("cell", 0)
        return self.cell, {}


class Broken(Stateful):
    def step(self, action):
        if self.cell == 2:
            raise ZeroDivisionError("no floor")
        return super().step(action)


def searched(env_fn, trained, simulations, **more):
    options = dict(episodes=2, rules=RULES, max_steps=20)
    return play_searched(env_fn, trained, simulations=simulations, **{**options, **more})


class SearchCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        plain = without_xla()
        plain.start()
        self.addCleanup(plain.stop)


class TestSearch(SearchCase):
    def test_a_wrong_network_is_put_right_by_enough_simulations(self):
        run = told(info_of(Stateful), always(0.5, 0.45))  # left, always
        self.assertAllEqual(searched(Stateful, run, 1).returns, [0, 0])
        games = searched(Stateful, run, 32)
        self.assertAllEqual(games.returns, [1, 1])
        self.assertAllEqual(games.lengths, [3, 3])
        self.assertAllEqual(games.actions[0], [1, 1, 1])
        self.assertEqual(games.cut, 0)

    def test_a_policy_is_put_right_too_and_its_value_counts(self):
        run = told(info_of(Stateful), always(1.0, 0.0, 0.2), "ppo")
        self.assertAllEqual(searched(Stateful, run, 1).actions[0], [0] * 20)
        self.assertAllEqual(searched(Stateful, run, 64).actions[0], [1, 1, 1])

        def good_at_zero(obs):  # a value that says that the left end is where to be
            return np.stack([[0.0, 0.0, 5.0 if cell == 0 else 0.0] for cell in obs[:, -1, 0]])

        run = told(info_of(Stateful), good_at_zero, "ppo")
        self.assertAllEqual(searched(Stateful, run, 16, max_steps=3).actions[0], [0, 0, 0])

    def test_one_simulation_plays_as_the_network_alone(self):
        for algorithm in ALGORITHMS:
            run = untrained(info_of(Corridor), algorithm, network=NETWORK)
            games = searched(Corridor, run, 1, episodes=3, seed=4)
            alone = play_games(Corridor, Policy(run), episodes=3, seed=4, max_steps=20)
            self.assertAllEqual(games.returns, alone.returns)
            self.assertAllEqual(games.lengths, alone.lengths)
            self.assertAllEqual(games.evaluations, games.lengths)

    def test_how_far_a_puzzle_was_from_its_solution(self):
        run = untrained(info_of(lambda: make_env("Sokoban-v0")), network=MARKOV)
        games = searched(lambda: make_env("Sokoban-v0"), run, 1, episodes=3, at_once=2, seed=5)
        env = make_env("Sokoban-v0")
        seeds = env_seeds(game_seed(5), 3)
        known = [env.reset(seed=int(seed))[1]["distance"] for seed in seeds]
        self.assertAllEqual(games.distances, known)
        run = untrained(info_of(Corridor), network=NETWORK)
        self.assertIsNone(searched(Corridor, run, 1).distances)

    def test_games_are_those_of_play_games(self):
        run = untrained(info_of(lambda: make_env("CartPole-v1")), network=MARKOV)
        options = dict(episodes=4, seed=7, max_steps=40)
        alone = play_games(lambda: make_env("CartPole-v1"), Policy(run), **options)
        games = searched(lambda: make_env("CartPole-v1"), run, 1, **options, at_once=3)
        self.assertAllEqual(games.lengths, alone.lengths)

    def test_more_simulations_balance_the_pole_of_an_untrained_network(self):
        # All it needs to know is that falling ends what pays.
        run = told(info_of(lambda: make_env("CartPole-v1")), always(5.0, 5.0))
        options = dict(episodes=2, seed=1, max_steps=60)
        self.assertLess(searched(lambda: make_env("CartPole-v1"), run, 1, **options).returns[0], 20)
        games = searched(lambda: make_env("CartPole-v1"), run, 32, **options)
        self.assertAllEqual(games.returns, [60, 60])
        self.assertEqual(games.cut, 2)

    def test_illegal_actions_are_never_tried(self):
        run = told(info_of(Masked), always(0.4, 0.3, 9.0))
        games = searched(Masked, run, 32)
        self.assertAllEqual(games.actions[0], [1, 1, 1])
        self.assertAllEqual(searched(Masked, run, 1, max_steps=2).actions[0], [0, 0])

    def test_evaluations_are_counted_as_they_are_made(self):
        run = told(info_of(Stateful), always(0.5, 0.45))
        games = searched(Stateful, run, 8, episodes=1)
        # There are three states besides the end, whose value is known.
        self.assertLessEqual(games.evaluations[0], 3 * games.lengths[0])
        self.assertGreater(games.evaluations[0], games.lengths[0])
        self.assertEqual(games.evaluations[0], len(run.net.shown) - 1)  # one compiles
        self.assertGreater(games.seconds[0], 0)

    def test_equal_seeds_play_equal_games_however_many_at_once(self):
        run = untrained(info_of(Bet), network=MARKOV)
        options = dict(episodes=5, seed=3, avoid_repeats=True)
        one = searched(Bet, run, 12, **options, at_once=5)
        other = searched(Bet, run, 12, **options, at_once=2)
        for these, those in zip(one.actions, other.actions):
            self.assertAllEqual(these, those)
        self.assertAllEqual(one.returns, other.returns)

    def test_several_leaves_search_as_many_simulations(self):
        run = told(info_of(Stateful), always(0.5, 0.45))
        games = searched(Stateful, run, 64, leaves=4)
        self.assertAllEqual(games.returns, [1, 1])
        self.assertLessEqual(games.evaluations.max(), 64 * games.lengths.max())

    def test_windows_are_those_of_the_game(self):
        run = told(info_of(Stateful), always(0.0, 0.5), context=3)
        searched(Stateful, run, 3, episodes=1)
        seen = {
            tuple(zip(obs[:, 0].tolist(), first.tolist(), before.tolist()))
            for batch in run.net.shown[1:]
            for obs, first, before in zip(*batch)
        }
        # The first root; a leaf two steps on, by right and right; and a root two steps later.
        self.assertIn(((0, 1, -1), (0, 1, -1), (0, 1, -1)), seen)
        self.assertIn(((0, 1, -1), (1, 0, 1), (2, 0, 1)), seen)
        self.assertIn(((0, 1, -1), (0, 1, -1), (1, 0, 1)), seen)

    def test_the_same_actions_play_the_same_game_again(self):
        run = untrained(info_of(lambda: make_env("CartPole-v1")), network=MARKOV)
        options = dict(episodes=1, seed=2, max_steps=30)
        games = searched(lambda: make_env("CartPole-v1"), run, 4, **options)
        again = Replayed(run.info, games.actions[0])
        replayed = play_games(lambda: make_env("CartPole-v1"), again, **options)
        self.assertAllEqual(replayed.returns, games.returns)
        self.assertAllEqual(replayed.lengths, games.lengths)

    def test_signs_of_rewards_and_lost_lives_count_as_they_were_learned(self):
        class Dear(Stateful):
            """Right pays 1 at once, left 9; the end is the same."""

            def step(self, action):
                obs, _, *rest = super().step(action)
                return obs, 1.0 if action else 9.0, *rest

        run = told(info_of(Dear), always(0.0, 0.01))
        self.assertEqual(searched(Dear, run, 2, max_steps=1, exploration=0).actions[0], [1])
        self.assertEqual(searched(Dear, run, 9, max_steps=1).actions[0], [0])
        signs = RULES._replace(signs=True)
        self.assertEqual(searched(Dear, run, 9, max_steps=1, rules=signs).actions[0], [1])

        class Lives(Stateful):
            """Left costs a life and pays 0.5; right pays nothing, and what comes is worth 1."""

            def step(self, action):
                self.lives = getattr(self, "lives", 3) - (action == 0)
                return 0, 0.5 * (action == 0), False, False, dict(lives=self.lives)

            def get_state(self):
                return dict(super().get_state(), lives=getattr(self, "lives", 3))

            def set_state(self, state):
                super().set_state(state)
                self.lives = state["lives"]

        run = told(info_of(Lives), always(1.0, 1.0))
        move = dict(max_steps=2, episodes=1)
        self.assertEqual(searched(Lives, run, 16, **move).actions[0][1], 0)
        ends = RULES._replace(life_loss_ends=True)
        self.assertEqual(searched(Lives, run, 16, **move, rules=ends).actions[0][1], 1)

    def test_widened_gaps_count_as_what_they_stand_for(self):
        run = told(info_of(Stateful), always(0.9, 0.0))
        narrow = RULES._replace(advantage_learning=0.9)
        self.assertAllEqual(searched(Stateful, run, 1, max_steps=2).actions[0], [0, 0])
        wide = searched(Stateful, run, 3, max_steps=1, exploration=0.5)
        self.assertAllEqual(wide.actions[0], [0])
        self.assertAllEqual(searched(Stateful, run, 48, rules=narrow).actions[0], [1, 1, 1])

    def test_starts_and_limits_of_each_game(self):
        run = told(info_of(Levels), always(0.4, 0.5))
        starts = [dict(cell=cell) for cell in (0, 1, 2)]
        games = searched(Levels, run, 2, episodes=3, starts=starts, at_once=2)
        self.assertAllEqual(games.lengths, [3, 2, 1])
        limits = [1, 2, 3]
        games = searched(Levels, run, 2, episodes=3, starts=starts, max_steps=limits)
        self.assertAllEqual(games.lengths, [1, 2, 1])
        self.assertEqual(games.cut, 1)
        games = searched(
            Levels, run, 2, episodes=3, max_steps=lambda env: 2 + env.unwrapped.cell, starts=starts
        )
        self.assertAllEqual(games.lengths, [2, 2, 1])


class TestChance(SearchCase):
    def test_a_search_can_not_see_what_the_game_will_draw(self):
        for env_fn in (Bet, TakenApart, Telling):
            run = told(info_of(env_fn), always(0.0, 0.0))
            games = searched(env_fn, run, 50, episodes=2)
            bets = np.concatenate(games.actions)
            # A bet costs 2 on average; one that is known to win would be made half the time.
            self.assertLess(bets.mean(), 0.1, env_fn)
            self.assertLess(games.returns.max(), 2, env_fn)

    def test_who_sees_it_wins(self):
        # The test above can fail: a search whose copies go on with the game's own numbers.
        class Peeking(QuickStates):
            def save(self):
                return super().save(), self.base.np_random.bit_generator.state

            def restore(self, saved, rng):
                super().restore(saved[0], rng)
                self.base.np_random.bit_generator.state = saved[1]

            def drew(self, rng):
                return False

        with unittest.mock.patch("tfdqt.games.search.states_of", lambda env: Peeking):
            run = told(info_of(Bet), always(0.0, 0.0))
            games = searched(Bet, run, 60, episodes=4)
        self.assertGreater(games.returns.min(), 0)
        self.assertGreater(games.returns.mean(), 3)

    def test_frozen_lake_is_crossed(self):
        run = told(info_of(lambda: make_env("FrozenLake-v1")), always(0.1, 0.1, 0.1, 0.1))
        options = dict(episodes=3, max_steps=30, rules=Rules(0.99, *RULES[1:]))
        alone = searched(lambda: make_env("FrozenLake-v1"), run, 1, **options)
        games = searched(lambda: make_env("FrozenLake-v1"), run, 40, **options)
        self.assertGreater(games.lengths.mean(), 3 * alone.lengths.mean() / 2)

    def test_the_search_leaves_the_played_game_as_it_is(self):
        played = []

        def noted():
            played.append(Bet())
            return played[-1]

        seen = []
        begin = len(played)

        def says(obs):
            games = [env for env in played[begin:] if hasattr(env, "round")]
            seen.append([env_state(env) for env in games[-1:]])
            return np.tile([0.0, 0.1], (len(obs), 1))

        run = told(info_of(Bet), says)
        games = searched(noted, run, 10, episodes=1, seed=5)
        self.assertEqual(games.lengths, [10])
        # The states while one move is searched are equal; there are as many as moves.
        distinct = {repr(states) for states in seen[1:]}
        self.assertLen(distinct, 10)


class TestRepeats(SearchCase):
    def test_what_was_met_is_avoided_without_more_evaluations(self):
        run = told(info_of(Markers), always(0.4, 0.3, 0.5))  # stands still
        self.assertAllEqual(searched(Markers, run, 1).returns, [0, 0])
        games = searched(Markers, run, 1, avoid_repeats=True)
        self.assertAllEqual(games.actions[0], [1, 1, 1])
        self.assertAllEqual(games.evaluations, [3, 3])
        self.assertAllEqual(searched(Markers, run, 4, avoid_repeats=True).returns, [1, 1])

    def test_where_all_repeats_the_best_is_taken(self):
        class Closed(Markers):
            def step(self, action):
                return self.cell, 0.0, False, False, {}

        run = told(info_of(Closed), always(0.4, 0.3, 0.5))
        games = searched(Closed, run, 3, avoid_repeats=True, max_steps=3, exploration=0)
        self.assertAllEqual(games.actions[0], [2, 2, 2])

    def test_what_chance_may_bring_back_is_no_repeat(self):
        class Drift(Stateful):
            def step(self, action):
                if action == 0:
                    self.np_random.random()
                    return self.cell, 0.0, False, False, {}
                return super().step(action)

        run = told(info_of(Drift), always(0.5, 0.4))
        games = searched(Drift, run, 1, avoid_repeats=True, max_steps=3)
        self.assertAllEqual(games.actions[0], [0, 0, 0])


class TestCopies(unittest.TestCase):
    def test_quick_ones_go_on_as_exact_ones(self):
        names = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "FrozenLake-v1", "Taxi-v4"]
        names += ["Blackjack-v1", "CliffWalking-v1", "Breakout-ram-v0", "CartPolePositions-v1"]
        for name in names:
            with self.subTest(name):
                env = make_env(name)
                copy = make_env(name)
                env.reset(seed=1)
                copy.reset(seed=2)
                self.assertIs(states_of(env), QuickStates)
                actions = np.random.default_rng(0)
                for _ in range(3):
                    env.step(actions.integers(env.action_space.n))
                saved = QuickStates(env).save()
                rng = np.random.default_rng()
                rng.bit_generator.state = env.unwrapped.np_random.bit_generator.state
                QuickStates(copy).restore(saved, rng)
                for _ in range(8):
                    action = actions.integers(env.action_space.n)
                    one, *rest = env.step(action)
                    other, *others = copy.step(action)
                    np.testing.assert_array_equal(one, other)
                    self.assertEqual(rest[:3], others[:3])
                env.close()
                copy.close()

    def test_what_was_saved_stays_as_it_was(self):
        class Board(Stateful):
            def reset(self, **more):
                self.board = np.zeros(3)
                self.log = [[0]]
                return super().reset(**more)

            def step(self, action):
                self.board += 1
                self.log[0].append(1)
                return super().step(action)

            def get_state(self):
                return dict(super().get_state(), board=self.board, log=self.log)

            def set_state(self, state):
                super().set_state(state)
                self.board = state["board"]
                self.log = state["log"]

        env = Board()
        env.reset(seed=0)
        states = QuickStates(env)
        rng = np.random.default_rng(0)
        saved = states.save()
        for _ in range(2):
            env.step(1)
            states.restore(saved, rng)
            self.assertEqual((env.cell, env.board.tolist(), env.log), (0, [0, 0, 0], [[0]]))

    def test_any_other_is_taken_apart(self):
        env = gymnasium.wrappers.FrameStackObservation(make_env("CartPole-v1"), 2)
        self.assertIs(states_of(env.unwrapped), QuickStates)
        env.reset(seed=0)
        self.assertIs(states_of(env), AnyStates)
        states = AnyStates(env)
        rng = np.random.default_rng(0)
        states.restore(states.save(), rng)
        env.step(0)
        self.assertFalse(states.drew(rng))
        env = TakenApart()
        env.reset(seed=0)
        self.assertIs(states_of(env), AnyStates)
        states = AnyStates(env)
        saved = states.save()
        rewards = set()
        for action in [1] * 20 + [0]:
            states.restore(saved, rng)
            _, reward, *_ = env.step(action)
            self.assertTrue(states.drew(rng))
            rewards.add(reward)
        self.assertEqual(rewards, {1.0, -5.0, 0.0})

    def test_an_environment_without_a_state_says_so(self):
        with self.assertRaisesRegex(NoState, "is not to be saved"):
            states_of(make_unsaved(Stateful))


class TestWords(SearchCase):
    def refused(self, words, env_fn=Stateful, simulations=4, **more):
        run = told(info_of(env_fn), always(0.5, 0.4))
        with self.assertRaisesRegex(UsageError, words) as caught:
            searched(env_fn, run, simulations, **more)
        self.assertNotIn("\n", str(caught.exception))

    def test_bad_numbers(self):
        self.refused("--simulations must be a whole number of at least 1, not 0", simulations=0)
        self.refused("--leaves must be a whole number of at least 1, not -1", leaves=-1)
        self.refused("--simulations must be a whole number .*, not 4.5", simulations=4.5)
        self.refused("--exploration must be 0 or more, and finite, not nan", exploration=np.nan)

    def test_numbers_of_games_that_do_not_fit(self):
        self.refused("at_once must be a whole number of at least 1, not 0", at_once=0)
        self.refused("starts must have one of each of 2 games, not 1", starts=[{}], episodes=2)
        self.refused("max_steps must have one of each", max_steps=[3], episodes=2)
        self.refused("starts must have one of each of 2", starts=iter([{}]), episodes=2)
        self.refused("starts must be a list", starts={"level": "a"}, episodes=2)
        self.refused("starts must hold .* a dict each", starts=[None, {}], episodes=2)
        self.refused("max_steps must have one of each", max_steps=np.array([3, 4, 5]), episodes=2)
        for wrong in (0, [2, 2.7]):
            said = f"max_steps must be a whole number of at least 1, not {np.max(wrong)}"
            self.refused(said, max_steps=wrong, episodes=2)
        self.refused("max_steps must be a list", max_steps=2.5, episodes=2)
        self.refused("seed must be a whole number", seed=None)
        with self.assertRaisesRegex(UsageError, "episodes must be a whole number .*, not -1"):
            play_games(Stateful, None, episodes=-1)

    def test_no_state(self):
        self.refused(
            "--simulations needs an environment whose state can be saved, and that of Stateful .*"
            "it is not to be saved.*leave it out",
            lambda: make_unsaved(Stateful),
        )
        self.refused("a copy of it goes on otherwise", Secret)
        self.refused("holds the state of a random generator", TellingPlainly)

    def test_actions_in_parts(self):
        class Many(Stateful):
            action_space = spaces.MultiDiscrete([20, 20])

        self.refused("needs actions that have an output each", Many)

    def test_an_environment_that_fails(self):
        run = told(info_of(Broken), always(0.0, 0.5))
        with self.assertRaisesRegex(EnvFailure, "failed in a search: ZeroDivisionError: no floor"):
            with unittest.mock.patch("tfdqt.games.search.state_fault", lambda *_: None):
                searched(Broken, run, 8)

    def test_rules_of_runs(self):
        for name, algorithm in ALGORITHMS.items():
            cfg = algorithm.settings(gamma=0.7, reward_transform="sign", life_loss_ends=True)
            run = TrainedRun(None, None, None, algorithm, {"algorithm": name, name: cfg}, 0)
            self.assertEqual(rules_of(run)[:3], (0.7, True, True))


if __name__ == "__main__":
    unittest.main()
