"""Acting from what was kept of the steps before says what encoding the window says."""

import functools

import numpy as np

from tests.games.corridor import Corridor
from tests.games.toys import NUMBER, without_xla
from tfdqt.backend import keras, tf
from tfdqt.games import dqn
from tfdqt.games.config import NetworkConfig
from tfdqt.games.flat import best_at_last, flatten_pi_v, flatten_q
from tfdqt.games.networks import build_pi_v, build_q
from tfdqt.games.stepwise import make_stepwise
from tfdqt.games.window import make_window, network_inputs, push

CONTEXT = 20
GPT = dict(context=CONTEXT, layers=2, heads=2, width=8, prev_action=True)
GRU = dict(network="gru", context=CONTEXT, layers=2, width=8, prev_action=True, layer_norm=True)
# When each of three rows starts an episode: within the context, beyond it, and every few steps.
STARTS = ((0, 15, 30), (0, 45), tuple(range(0, 60, 7)))


def made(network, policy=False):
    """A network whose weights are larger than at the start, or nothing depends on the past."""
    keras.utils.set_random_seed(0)
    build, flatten = (build_pi_v, flatten_pi_v) if policy else (build_q, flatten_q)
    net = flatten(build(NUMBER, network), NUMBER)
    rng = np.random.default_rng(0)
    weights = 3 * net.start + rng.normal(0.0, 0.1, net.start.shape)
    return net._replace(apply=tf.function(net.apply)), weights


def windows(steps=60):
    """The windows of three rows, step after step."""
    rng = np.random.default_rng(0)
    window = make_window(NUMBER, 3, CONTEXT)
    for step in range(steps):
        first = np.array([step in starts for starts in STARTS])
        push(window, rng.normal(size=(3, 1)), first, rng.integers(0, 2, 3))
        yield {name: part.copy() for name, part in network_inputs(window).items()}


class Stepwise(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(without_xla())

    def test_it_says_what_encoding_the_window_says(self):
        for policy, places in (
            (False, "history"),
            (True, "history"),
            (False, "lag"),
            (False, "lag-start"),
        ):
            self.check(*made(NetworkConfig(**GPT, places=places), policy))

    def test_so_do_the_states_of_a_gru(self):
        for policy in (False, True):
            self.check(*made(NetworkConfig(**GRU), policy))

    def check(self, net, weights):
        look = make_stepwise(net)(weights)
        for inputs in windows():
            self.assertAllClose(look(inputs), net.apply(weights, inputs)[:, -1], atol=1e-4)

    def test_of_histograms_it_says_the_values(self):
        net, weights = made(NetworkConfig(**GPT, value_scale="log", bins=16))
        look = make_stepwise(net)(weights)
        for inputs in windows(20):
            found = look(inputs)
            self.assertEqual(found.shape, (3, 2, 1))
            self.assertAllClose(found, net.apply(weights, inputs)[:, -1], rtol=1e-4, atol=1e-4)

    def test_it_may_begin_at_any_step(self):
        net, weights = made(NetworkConfig(**GPT))
        begin = make_stepwise(net)
        for step, inputs in enumerate(windows()):
            if step % 11 == 5:
                look = begin(weights)
            if step >= 5:
                self.assertAllClose(look(inputs), net.apply(weights, inputs)[:, -1], atol=1e-4)

    def test_what_is_wanted_of_it(self):
        net, weights = made(NetworkConfig(**GPT))
        look = make_stepwise(net, best_at_last())(weights)
        for inputs in windows(30):
            best = net.apply(weights, inputs)[:, -1, :, 0].numpy().argmax(axis=-1)
            self.assertAllEqual(look(inputs), best)

    def test_a_step_within_the_context_encodes_no_window(self):
        for network, kept in ((GPT, (3, 2, 2, CONTEXT, 2, 4)), (GRU, (3, 2, 8))):
            net, weights = made(NetworkConfig(**network))
            look = make_stepwise(net)(weights)
            look.encode = None  # what would encode windows
            for step, inputs in zip(range(CONTEXT), windows()):
                look(inputs)
                self.assertLess(look.place.max(), CONTEXT, msg=f"step {step}")
            self.assertEqual(look.kept.shape, kept)

    def test_a_run_that_is_gone_on_with_ends_as_one_that_was_not(self):
        gpt = NetworkConfig(context=12, layers=1, heads=1, width=8, places="lag")
        cfg = dqn.DQNConfig(
            total_steps=320, num_envs=2, chunk=8, learning_starts=48, replay_size=400, batch_size=4
        )
        gru = NetworkConfig(network="gru", context=12, layers=1, width=8)
        for network in (gpt, gru):
            train = functools.partial(
                dqn.dqn, Corridor, functools.partial(build_q, cfg=network), cfg, workers=0
            )
            kept = []
            keep = functools.partial(lambda kept, step, make, last=False: kept.append(make()), kept)
            whole, _, _ = train(save=keep)
            resumed, _, _ = train(saved=kept[9])
            for one, other in zip(tf.nest.flatten(whole), tf.nest.flatten(resumed)):
                self.assertAllEqual(one, other)

    def test_who_keeps_steps(self):
        for network, keeps in (
            (NetworkConfig(**GPT), True),
            (NetworkConfig(**{**GPT, "context": 8}), False),
            (NetworkConfig(**GPT, loops=2), False),
            (NetworkConfig(network="gru", context=CONTEXT, width=8), True),
            (NetworkConfig(network="dense", context=CONTEXT), False),
        ):
            net, weights = made(network)
            self.assertEqual(net.stepwise is not None, keeps)
            look = make_stepwise(net)(weights)
            inputs = {name: part[:, -network.context :] for name, part in next(windows()).items()}
            self.assertAllClose(look(inputs), net.apply(weights, inputs)[:, -1])


if __name__ == "__main__":
    tf.test.main()
