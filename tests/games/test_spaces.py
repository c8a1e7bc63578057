"""What a network is told of spaces, how observations are read, and what is held against them."""

import enum
import functools
import io
import json
import re
import unittest
from contextlib import redirect_stderr

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.games.scripted import Spaces, vec_of
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.envs import env_info, info_of, make_env, wrap
from tfdqt.games.exact import state_fault
from tfdqt.games.reader import make_reader
from tfdqt.games.space_json import info_from_json, info_to_json
from tfdqt.games.spaces import (
    make_action,
    read_mask,
)

TWO = spaces.Discrete(2)
VECTOR = spaces.Box(-1, 1, (3,), np.float32)
BYTES = spaces.Box(0, 255, (3,), np.uint8)


def told(obs, actions=TWO):
    return env_info(Spaces(obs, actions))


class Info(unittest.TestCase):
    def test_what_a_network_is_told(self):
        for env, expected in (
            (make_env("CartPole-v1"), ("CartPole-v1", (4,), "float32", (), 2)),
            (make_env("FrozenLake-v1"), ("FrozenLake-v1", (1,), "int32", (16,), 4)),
            (make_env("Blackjack-v1"), ("Blackjack-v1", (3,), "int32", (32, 11, 2), 2)),
        ):
            with self.subTest(expected=expected):
                self.addCleanup(env.close)
                self.assertEqual(env_info(env)[:5], expected)
        mixed = spaces.Dict(
            a=spaces.Box(-1, 1, (2, 2), np.float32),
            b=spaces.Dict(c=spaces.Discrete(5, start=3), d=spaces.MultiBinary(2)),
        )
        for space, expected in (
            (spaces.MultiDiscrete([3, 5]), ((2,), "int32", (3, 5))),
            (spaces.MultiDiscrete([[2, 3], [4, 5]]), ((4,), "uint8", (2, 3, 4, 5))),
            (spaces.MultiDiscrete([[2, 300]]), ((2,), "int32", (2, 300))),
            (spaces.MultiBinary([2, 1]), ((2,), "uint8", (2, 2))),
            (spaces.Box(0, 255, (2, 2, 3), np.uint8), ((12,), "uint8", ())),
            (
                spaces.Tuple([TWO, spaces.Box(0, 9, (2, 2), np.uint8)]),
                ((5,), "uint8", (2,) + 4 * (0,)),
            ),
            (spaces.Box(0, 9, (3,), np.int64), ((3,), "float32", ())),
            (spaces.Box(0, 9, (), np.float32), ((1,), "float32", ())),
            (spaces.Box(-1, 1, (4, 2), np.float32), ((8,), "float32", ())),
            (BYTES, ((3,), "uint8", ())),
            (spaces.Tuple([BYTES, BYTES]), ((6,), "uint8", ())),
            (spaces.Tuple([TWO, BYTES]), ((4,), "float32", (2, 0, 0, 0))),
            (mixed, ((7,), "float32", (0, 0, 0, 0, 5, 2, 2))),
        ):
            with self.subTest(space=space):
                info = told(space)
                self.assertEqual(info[1:4], expected)
                self.assertEqual({type(n) for n in (*info.nvec, info.num_actions)}, {int})

    def test_name_can_be_given(self):
        self.assertEqual(env_info(make_env("CartPole-v1"), "mine").name, "mine")

    def test_the_order_is_that_of_gymnasium(self):
        space = spaces.Dict(b=VECTOR, a=spaces.Tuple([VECTOR, spaces.MultiBinary(2)]))
        obs = space.sample()
        row = make_reader(told(space)).read(obs)
        np.testing.assert_allclose(row, spaces.flatten(space, obs), rtol=1e-6)

    def test_actions(self):
        for space, count in (
            (spaces.Discrete(7, start=-2), 7),
            (spaces.MultiDiscrete([2, 3], start=[5, 0]), 6),
            (spaces.MultiDiscrete([[2, 3], [1, 2]]), 12),
            (spaces.MultiBinary(3), 8),
        ):
            with self.subTest(space=space):
                self.assertEqual(told(VECTOR, space).num_actions, count)
                taken = [make_action(space)(index) for index in range(count)]
                self.assertTrue(all(space.contains(action) for action in taken))
                self.assertEqual(len({np.asarray(action).tobytes() for action in taken}), count)

    def test_what_cannot_be_read_says_what_to_do(self):
        mission = spaces.Dict(image=VECTOR, mission=spaces.Text(3))
        for obs, actions, words in (
            (mission, TWO, r'FilterObservation\(filter_keys=\["image"\]\)\'\.$'),
            (spaces.Text(3), TWO, "MODULE:FUNCTION"),
            (spaces.Sequence(TWO), TWO, "MODULE:FUNCTION"),
            (spaces.Box(-1, 1, (0,), np.float32), TWO, "empty"),
            (VECTOR, spaces.Box(-1, 1, (2,), np.float32), "DiscretizeAction"),
            (VECTOR, spaces.MultiDiscrete([99] * 9), "actions by MultiDiscrete"),
            (VECTOR, spaces.Discrete(2**40), "1,099,511,627,776 actions"),
            (VECTOR, spaces.Tuple([TWO, TWO]), "MODULE:FUNCTION"),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(UsageError, words) as caught:
                told(obs, actions)
            self.assertNotIn("\n", str(caught.exception))

    def test_the_advice_works(self):
        """What the message says to put on the command line makes it readable."""
        image = spaces.Box(0, 255, (2, 2, 3), np.uint8)
        space = spaces.Dict(image=image, direction=spaces.Discrete(4), mission=spaces.Text(9))
        with self.assertRaises(UsageError) as caught:
            told(space)
        env = Spaces(space, TWO)
        for wrapper in re.findall(r"gymnasium\.wrappers:\w+(?:\(.*?\))?", str(caught.exception)):
            env = wrap(env, wrapper)
        self.assertEqual(env_info(env)[1:3], ((13,), "uint8"))

    def test_spaces_pass_through_json(self):
        for space in (
            VECTOR,
            BYTES,
            spaces.Box(np.float32([-np.inf, 0]), np.float32([3, np.inf])),
            spaces.Box(0, 2**60, (2, 1), np.int64),
            spaces.Box(0, 1, (), np.float64),
            spaces.Discrete(5, start=-3),
            spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 1], [0, 0]]),
            spaces.MultiBinary([2, 3]),
            spaces.Box(0, 1, (2, 3), np.bool_),
            spaces.Dict(b=spaces.Tuple([TWO, VECTOR]), a=BYTES),
            spaces.Dict({10: VECTOR, 2: TWO}),
        ):
            with self.subTest(space=space):
                info = told(space, spaces.MultiDiscrete([2, 2]))
                again = info_from_json(json.loads(json.dumps(info_to_json(info))), info.name)
                self.assertEqual(again, info)
        # Runs that do not say how they kept bits go on as they were.
        for dtype, kept in ((np.bool_, "float32"), (np.uint8, "uint8")):
            plain = info_to_json(told(spaces.Box(0, 1, (2, 3), dtype)))
            del plain["kept"]
            self.assertEqual(info_from_json(plain, "x").obs_dtype, kept)
        with self.assertRaisesRegex(UsageError, "kept as int32"):
            info_from_json(dict(plain, kept="int32"), "x")
        # One of a class of one's own comes back as its kind.
        own = type("Levels", (spaces.Discrete,), {})(3)
        again = info_from_json(info_to_json(told(own, TWO)), "x")
        self.assertEqual(again.observation_space, spaces.Discrete(3))

        class Key(str, enum.Enum):  # noqa: UP042  (a StrEnum is called by its value)
            A = "a"

        again = info_from_json(info_to_json(told(spaces.Dict({Key.A: TWO}), TWO)), "x")
        self.assertEqual(again.observation_space, spaces.Dict(a=TWO))
        with self.assertRaisesRegex(UsageError, "a part called .*'hand', 0.*rename it"):
            info_to_json(told(spaces.Dict({("hand", 0): TWO}), TWO))
        with self.assertRaisesRegex(UsageError, "config.json"):
            info_from_json(dict(observation=dict(kind="Box")), "x")


class Word(unittest.TestCase):
    """What an environment returns is held against its space."""

    def first(self, space, shown):
        vec = vec_of(self, lambda: Spaces(space, TWO, show=shown), workers=0)
        return vec.out["obs"][0].tolist()

    def test_what_fits_is_kept(self):
        f = np.float32
        for space, shown, expected in (
            (VECTOR, [0.5, -1, 1], [0.5, -1, 1]),
            (VECTOR, np.array([0.5, -1, 1]), [0.5, -1, 1]),
            (VECTOR, np.array([0, -1, 1], np.int8), [0, -1, 1]),
            (spaces.Box(-1, 1, (2,), np.float16), np.float16([0.5, 1]), [0.5, 1]),
            (spaces.Box(0, 1, (2,), np.bool_), np.array([True, False]), [1, 0]),
            (spaces.Box(0, 1, (2, 2), np.bool_), np.eye(2) > 0, [1, 0, 0, 1]),
            (spaces.Box(0, 1, (2, 2), np.int8), np.eye(2), [1, 0, 0, 1]),
            (BYTES, np.array([0, 128, 255]), [0, 128, 255]),
            (BYTES, [0.0, 7.0, 255.0], [0, 7, 255]),
            (spaces.Box(0, 1, (), f), 0.5, [0.5]),
            (spaces.Box(0, 1, (1,), f), f(0.5), [0.5]),
            (spaces.Box(0, 4, (2, 2), f), [[1, 2], [3, 4]], [1, 2, 3, 4]),
            (spaces.Discrete(5), np.array([4]), [4]),
            (spaces.Discrete(5, start=-2), -2, [0]),
            (spaces.Discrete(5), np.float64(3), [3]),
            (spaces.MultiDiscrete([3, 4], start=[1, 0]), (3, 3), [2, 3]),
            (spaces.MultiBinary(3), np.array([True, False, True]), [1, 0, 1]),
            (spaces.Dict(n=TWO, v=VECTOR), dict(v=[0, 0, 1], n=1, more=3), [1, 0, 0, 1]),
            (spaces.Tuple([TWO, BYTES]), (1, np.uint8([0, 64, 192])), [1, -1, -0.5, 0.5]),
            (spaces.Tuple([TWO, BYTES]), (1, np.float32([0, 64, 192])), [1, -1, -0.5, 0.5]),
        ):
            with self.subTest(space=space, shown=shown):
                self.assertEqual(self.first(space, shown), expected)

    def test_what_does_not_fit_is_a_failure(self):
        for space, shown, words in (
            (spaces.Box(-9, 9, (4,), np.float32), np.zeros(1, "f"), r"shape \(1,\), not \(4,\)"),
            (VECTOR, np.zeros((1, 3), "f"), "shape"),
            (VECTOR, 0.0, "shape"),
            (VECTOR, None, "no numbers"),
            (VECTOR, "abc", "no numbers"),
            (VECTOR, [[1], [2, 3], 4], "no numbers"),
            (VECTOR, np.array([1j, 0, 0]), "no numbers"),
            (VECTOR, np.ma.array(np.zeros(3, "f"), mask=[0, 1, 0]), "masked"),
            (spaces.Box(0, 9, (2,), np.int64), np.array([0.5, 1]), "no whole numbers"),
            (spaces.Box(0, 1, (2,), np.bool_), [0.5, 1], "no whole numbers"),
            (spaces.Box(0, 1, (2, 2), np.bool_), np.eye(2) / 2, "not all 0 or 1"),
            (spaces.Box(0, 1, (2, 2), np.int8), -np.eye(2, dtype=np.int8), "not all 0 or 1"),
            (spaces.Box(0, 1, (2, 2), np.int8), np.eye(2) * np.nan, "not all 0 or 1"),
            (VECTOR, dict(a=1), "no numbers"),
            (VECTOR, np.float32([0, np.nan, 0]), r"entry \[1\] is nan"),
            (VECTOR, np.float32([0, 0, np.inf]), r"entry \[2\] is inf"),
            (spaces.Box(-np.inf, np.inf, (2,), np.float64), [1e300, 0], r"entry \[0\] is inf"),
            (spaces.Box(0, 2**60, (1,), np.int64), np.array([2**24]), "float32 does not tell"),
            (spaces.Box(-(2**60), 0, (1,), np.int64), np.array([-(2**63)]), "float32 does not"),
            (spaces.Box(0, 2**60, (1,), np.int64), np.array([1e15]), "float32 does not tell"),
            (spaces.Tuple([TWO, BYTES]), (1, np.float32([300, 0, 0])), "no bytes"),
            (BYTES, np.array([300, 0, 0]), "no bytes"),
            (BYTES, np.array([-1, 0, 0]), "no bytes"),
            (BYTES, [0.5, 0, 0], "no bytes"),
            (BYTES, [np.nan, 0, 0], "no bytes"),
            (spaces.Discrete(5), 7, r"7, which does not lie in its space Discrete\(5\)"),
            (spaces.Discrete(5), -1, "does not lie"),
            (spaces.Discrete(5), 2**32 + 1, "does not lie"),
            (spaces.Discrete(5), 2.5, "no whole number"),
            (spaces.Discrete(5), np.inf, "no whole number"),
            (spaces.Discrete(10, start=-5), np.inf, "no whole number"),
            (spaces.Discrete(10, start=-5), np.nan, "no whole number"),
            (spaces.Discrete(5), np.array([1, 2]), "shape"),
            (spaces.MultiDiscrete([3, 4]), np.array([3, 0]), "does not lie"),
            (spaces.MultiDiscrete([3, 4]), np.array([0.5, 0]), "does not lie"),
            (spaces.MultiBinary(2), [0, 2], "does not lie"),
            (spaces.Dict(n=TWO, v=VECTOR), dict(n=1), "without v"),
            (spaces.Dict(n=TWO, v=VECTOR), [1, 2], "no.* a dict"),
            (spaces.Dict(n=TWO), dict(n=9), r"in \[n\] 9"),
            (spaces.Tuple([TWO, TWO]), (1,), "not a tuple"),
            (spaces.Tuple([BYTES, TWO]), ([300, 0, 0], 0), "no bytes"),
        ):
            with self.subTest(space=space, shown=shown):
                with self.assertRaisesRegex(EnvFailure, words) as caught:
                    self.first(space, shown)
                self.assertNotIn("\n", str(caught.exception).strip())

    def test_bounds_that_are_overstepped_are_told_once(self):
        for workers in (0, 1):
            with self.subTest(workers=workers), redirect_stderr(io.StringIO()) as told:
                vec = vec_of(self, Overstepping, 2, workers=workers)
                for _ in range(4):
                    vec.step([0, 0])
                self.assertEqual(vec.out["obs"][:, 1].tolist(), [1.5, 1.5])
                self.assertEqual(told.getvalue().count("note:"), 1)
                self.assertRegex(told.getvalue(), r"entry \[1\] is 1\.\d+, beyond the -1 to 1")

    def test_many_that_are_overstepped_are_told_in_one_sentence(self):
        space = spaces.Box(0, 1, (4,), np.float32)
        with redirect_stderr(io.StringIO()) as told:
            self.first(space, np.array([0, 5, 6, 7], "f"))
        self.assertEqual(told.getvalue().count("note:"), 1)
        self.assertIn("[1] is 5, beyond the 0 to 1 of its space (and 2 others", told.getvalue())
        with self.assertRaisesRegex(EnvFailure, r"\[3\] is nan"):
            self.first(space, np.array([0, 5, 6, np.nan], "f"))

    def test_trying_whether_states_are_whole_tells_nothing_of_bounds(self):
        with redirect_stderr(io.StringIO()) as told:
            state_fault(Overstepping, info_of(Overstepping, "Overstepping"))
        self.assertEqual(told.getvalue(), "")

    def test_large_numbers_of_float64_are_told(self):
        space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        with redirect_stderr(io.StringIO()) as told:
            self.first(space, np.array([0.0, 3e9]))
        self.assertRegex(told.getvalue(), r"entry \[1\] is 3e\+09; float32 keeps 7 digits")
        with redirect_stderr(io.StringIO()) as told:
            self.first(spaces.Box(0, np.inf, (1,), np.float64), np.array([1.7e9]))
        self.assertRegex(told.getvalue(), "is 1.7e.09; float32 keeps 7 digits")

    def test_resets_and_steps_of_another_kind(self):
        for env, words in (
            (Odd(reset=np.zeros(3, "f")), "reset returned no pair"),
            (Odd(step=(np.zeros(3, "f"), 0.0, True, {})), "step returned no"),
            (Odd(step=(np.zeros(3, "f"), "1.0", True, False, {})), "no number: '1.0'"),
            (Odd(step=(np.zeros(3, "f"), None, True, False, {})), "no number: None"),
            (Odd(step=(np.zeros(3, "f"), np.ones(2), True, False, {})), "no number: array"),
            (Odd(step=(np.zeros(3, "f"), 1e39, True, False, {})), "no number in float32: 1e"),
            (Odd(step=(np.zeros(3, "f"), 10**39, True, False, {})), "no number in float32: 1e"),
            (Odd(step=(np.zeros(3, "f"), 10**400, True, False, {})), "no number: 1000"),
            (Odd(step=(np.zeros(3, "f"), 1.0, np.ones(2), False, {})), "as terminated"),
            (Odd(step=(np.zeros(3, "f"), 1.0, False, "no", {})), "as truncated"),
            (Odd(step=(np.zeros(3, "f"), 1.0, 2.5, False, {})), "as terminated"),
            (Odd(step=(np.zeros(3, "f"), 1.0, np.nan, False, {})), "as terminated"),
            (Odd(step=(np.zeros(1, "f"), 1.0, False, False, {})), "shape"),
        ):
            with self.subTest(words=words), self.assertRaisesRegex(EnvFailure, words):
                vec = vec_of(self, lambda env=env: env, info=env_info(env), workers=0)
                vec.step([0])

    def test_rewards_and_flags_of_many_types(self):
        for reward in (1, np.float32(1), np.array([1.0]), np.array(1), True, np.bool_(True)):
            for ended in (True, 1, np.bool_(True), np.array([True])):
                for lives in (None, "three", {"p": 3}, np.array([3, 3]), np.nan):
                    step = (np.zeros(3, "f"), reward, ended, False, dict(lives=lives))
                    vec = vec_of(self, lambda step=step: Odd(step=step), workers=0)
                    vec.step([0])
                    out = [vec.out[key][0] for key in ("reward", "discount", "ended", "ret")]
                    self.assertEqual(out, [1, 0, True, 1])
        vec = vec_of(self, lambda: Odd(step=(np.zeros(3, "f"), 10**30, True, False, {})), workers=0)
        vec.step([0])
        self.assertEqual(vec.out["ret"][0], 1e30)
        vec = vec_of(self, lambda: Odd(step=(np.zeros(3, "f"), 0, False, False, None)), workers=0)
        vec.step([0])

    def test_another_space_than_the_first_has(self):
        a = spaces.Box(-1, 1, (2,), np.float32)
        b = spaces.Box(-1, 1, (1,), np.float32)
        ordered = spaces.Dict([("a", a), ("b", b)])
        for first, other in (
            (VECTOR, spaces.Box(-1, 1, (4,), np.float32)),
            (VECTOR, spaces.Box(-1, 1, (3,), np.float64)),
            (BYTES, spaces.Box(0, 1, (3,), np.float32)),
            (ordered, spaces.Dict([("b", a), ("a", b)])),
            (ordered, spaces.Dict([("b", b), ("a", a)])),
            (spaces.Tuple((a, b)), spaces.Tuple((b, a))),
            (spaces.Discrete(3), spaces.Discrete(3, start=1)),
            (spaces.Box(0, 1, (2, 2), np.int8), spaces.Box(0, 9, (2, 2), np.int8)),
        ):
            made = iter([first, first, other])
            show = first.sample()
            with self.subTest(other=other), self.assertRaisesRegex(EnvFailure, "like the others"):
                vec_of(
                    self, lambda made=made, show=show: Spaces(next(made), TWO, show), 2, workers=0
                )

    def test_bounds_of_numbers_may_be_others(self):
        whole = spaces.Box(0, 100, (3,), np.int64)
        for first, other in (
            (VECTOR, spaces.Box(-2, 3, (3,), np.float32)),
            (whole, spaces.Box(-5, 1_000, (3,), np.int64)),
        ):
            made = iter([first, first, other])
            show = np.ones(3, first.dtype)
            make = functools.partial(lambda made, show: Spaces(next(made), TWO, show), made, show)
            vec = vec_of(self, make, 2, workers=0)
            np.testing.assert_array_equal(vec.out["obs"], np.ones((2, 3)))

    def test_parts_with_nothing_in_them(self):
        nothing = dict(a=VECTOR, b=spaces.Dict(), c=spaces.Tuple(()))
        show = dict(a=np.ones(3, "f"), b={}, c=())
        vec = vec_of(self, lambda: Spaces(spaces.Dict(nothing), TWO, show), workers=0)
        np.testing.assert_array_equal(vec.out["obs"], np.ones((1, 3)))


class Overstepping(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = TWO

    def reset(self, *, seed=None, options=None):
        self.x = 1.0
        return np.array([0, self.x], "f"), {}

    def step(self, action):
        self.x += 0.125
        return np.array([0, self.x], "f"), 0.0, False, False, {}


class Odd(gymnasium.Env):
    """Returns what it is told."""

    observation_space = VECTOR
    action_space = TWO

    def __init__(self, reset=None, step=None):
        self.answers = (np.zeros(3, "f"), {}) if reset is None else reset, step

    def reset(self, *, seed=None, options=None):
        return self.answers[0]

    def step(self, action):
        return self.answers[1]


class Masks(unittest.TestCase):
    def test_what_a_mask_says(self):
        for space, mask, expected in (
            (spaces.Discrete(3, start=4), [1, 0, 1], [1, 0, 1]),
            (spaces.Discrete(3), np.array([True, False, True]), [1, 0, 1]),
            (spaces.Discrete(3), np.array([[1.0, 0.0, 1.0]]), [1, 0, 1]),
            (spaces.MultiDiscrete([2, 3]), [1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0]),
            (spaces.MultiDiscrete([2, 3]), [1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 1, 0]),
            (spaces.MultiDiscrete([2, 2]), [1, 0, 1, 1], [1, 1, 0, 0]),  # of the parts
            (spaces.MultiDiscrete([20, 20]), [1] * 20 + [0] * 20, [1] * 20 + [0] * 20),
        ):
            self.assertEqual(read_mask(mask, told(VECTOR, space), "info").tolist(), expected)
        for mask in (None, "110", [1, 0], [1, 0, 2], [1, 0, -1], [[1], [0, 1]]):
            with self.subTest(mask=mask), self.assertRaisesRegex(EnvFailure, "action_mask"):
                read_mask(mask, told(VECTOR, spaces.Discrete(3)), "info")

    def test_where_masks_are_found(self):
        for source in ("info", "method", "observation"):
            env_fn = functools.partial(Legal, source)
            with self.subTest(source=source):
                info = info_of(env_fn)
                self.assertEqual((info.mask, info.obs_shape, info.features), (source, (5,), 2))
                vec = vec_of(self, env_fn, workers=0)
                self.assertEqual(vec.out["obs"].tolist(), [[0, 0, 1, 0, 1]])
                vec.step([2])
                self.assertEqual(vec.out["obs"].tolist(), [[2, 2, 1, 1, 0]])
                vec.step([1])  # the last step of an episode: every action counts as legal
                self.assertEqual(vec.out["obs"].tolist(), [[1, 1, 1, 1, 1]])

    def test_a_mask_that_comes_late(self):
        step = (np.zeros(3, "f"), 0.0, False, False, dict(action_mask=[1, 0]))
        vec = vec_of(self, lambda: Odd(step=step), workers=0)
        with self.assertRaisesRegex(EnvFailure, "at every reset and step"):
            vec.step([0])

    def test_no_legal_action_is_a_failure_unless_the_episode_has_terminated(self):
        for truncated in (False, True):
            env_fn = functools.partial(Legal, "info", stuck=True, truncated=truncated)
            vec = vec_of(self, env_fn, workers=0)
            with self.assertRaisesRegex(EnvFailure, "allows no action"):
                vec.step([2])


class Legal(gymnasium.Env):
    """Two steps; tells in one of three ways that the action taken last is illegal now."""

    action_space = spaces.Discrete(3)

    def __init__(self, source, stuck=False, truncated=False):
        self.source = source
        self.stuck = stuck
        self.truncated = truncated
        obs = spaces.Box(0, 2, (2,), np.float32)
        if source == "observation":
            obs = spaces.Dict(observation=obs, action_mask=spaces.MultiBinary(3))
        if source == "method":
            self.action_masks = lambda: self.mask
        self.observation_space = obs

    def shown(self, number, mask):
        self.mask = np.array(mask, np.int8)
        obs = np.full(2, number, np.float32)
        if self.source == "observation":
            return dict(observation=obs, action_mask=self.mask)
        return obs

    def info(self):
        return dict(action_mask=self.mask) if self.source == "info" else {}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.shown(0, [1, 0, 1]), self.info()

    def step(self, action):
        assert self.mask[action]
        self.t += 1
        mask = np.arange(3) != action
        obs = self.shown(action, mask * (not self.stuck and self.t < 2))
        return obs, 0.0, self.t == 2, self.truncated, self.info()


if __name__ == "__main__":
    unittest.main()
