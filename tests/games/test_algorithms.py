"""Every algorithm of the table, by its script: trained, gone on with, evaluated, exported, drawn.

A new one is tested by these without a line more.
"""

import csv
import functools
import itertools
import json
import shutil
import signal
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np

import tfdqt
from tests.games.corridor import Corridor, Forever
from tests.games.toys import without_xla
from tests.helpers import (
    assert_same_tree,
    call,
    call_alone,
    log_without_time,
    refused,
    slow,
    succeeds,
)
from tfdqt.backend import tf
from tfdqt.errors import EnvFailure, UsageError
from tfdqt.games.algorithms import ALGORITHMS
from tfdqt.games.config import NetworkConfig
from tfdqt.games.envs import make_env
from tfdqt.games.flat import make_act
from tfdqt.games.periodic import evaluation_seed
from tfdqt.games.play import play_episodes, play_games
from tfdqt.games.trained import load_run
from tfdqt.games.window import make_window, network_inputs, push
from tfdqt.runs.checkpoint import checkpoints, load_checkpoint
from tfdqt.runs.cli import read_settings
from tfdqt.runs.log import read_log

# A dense network is compiled soonest.
TINY = ["--network=dense", "--hidden", "16", "--context=2", "--num-envs=8", "--workers=0"]
STEPS = 2_048
# Settings with which an algorithm learns within 512 steps.
SHORT = dict(
    dqn=dict(replay_size=1_000, learning_starts=128, updates_per_step=0.25, chunk=1),
    ppo=dict(rollout_steps=64),
    pqn=dict(rollout_steps=64),
)


class HugeRewards(Forever):
    """Rewards of which a sum is more than float32 holds, though each is less."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, 3e38, *rest


class Stopping(Corridor):
    """One whose user has had enough at the third step."""

    limit = 1_000
    stopped = False

    def step(self, action):
        if self.steps == 2 and not Stopping.stopped:
            Stopping.stopped = True  # a second signal would end the process
            signal.raise_signal(signal.SIGTERM)
        return super().step(0)


@functools.cache
def folder():
    """A folder for the runs of all tests here; it goes when the process ends."""
    made = tempfile.TemporaryDirectory()
    folder.keep = made
    return Path(made.name)


@functools.cache
def trained(algorithm):
    """A run of an algorithm on CartPole at toy size: -> (folder, what its script said)."""
    run = folder() / algorithm
    done = call(
        f"run_{algorithm}",
        "--name=CartPole-v1",
        f"--run-dir={run}",
        f"--total-steps={STEPS}",
        "--checkpoint-every=512",
        "--log-lines=8",
        "--evaluate-every=600",
        "--evaluate-episodes=2",
        *TINY,
    )
    return run, done


def for_each(test):
    """A test that is called with the name of every algorithm, its record and its run."""

    @functools.wraps(test)
    def tests(self):
        for name, algorithm in ALGORITHMS.items():
            with self.subTest(algorithm=name):
                test(self, name, algorithm, trained(name)[0])

    return tests


class EachAlgorithm(unittest.TestCase):
    tmp = property(lambda self: folder())  # for call_alone

    @for_each
    def test_trains(self, name, algorithm, run):
        done = trained(name)[1]
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(f"Done at step {STEPS}", done.stdout)
        self.assertIn(f"evaluate.py {run}", done.stdout)
        self.assertRegex(done.stderr, rf"Epoch: 8 \| {STEPS} \| ")
        log = read_log(run)
        fields = algorithm.metrics._fields
        self.assertEqual(tuple(log), ("epoch", "seconds", *fields, "evaluation"))
        self.assertEqual(sorted(set(log["epoch"])), list(range(1, 9)))
        self.assertEqual(log["step"][-1], STEPS)
        self.assertTrue(np.isfinite(log["loss"][-1]))
        settings = json.loads((run / "config.json").read_text())
        self.assertEqual((settings["algorithm"], settings["log_lines"]), (name, 8))
        self.assertEqual(settings[name]["total_steps"], STEPS)

    @for_each
    def test_goes_on_to_the_same_bits(self, name, algorithm, run):
        again = folder() / f"{name}-again"
        shutil.copytree(run, again)
        older, newest = checkpoints(again)
        shutil.rmtree(newest)
        done = succeeds(self, f"run_{name}", f"--resume={again}", "--workers=0")
        self.assertIn(f"Going on from {older}", done.stdout)
        assert_same_tree(self, load_checkpoint(run)[0], load_checkpoint(again)[0])
        self.assertEqual(log_without_time(run), log_without_time(again))
        best, again = (load_checkpoint(each, "best", best_too=True)[0] for each in (run, again))
        assert_same_tree(self, best, again)

    @for_each
    def test_is_evaluated_while_it_trains(self, name, algorithm, run):
        log = read_log(run)
        evaluated = np.isfinite(log["evaluation"])
        # Behind the iterations that pass 600, 1,200 and 1,800, and at the end.
        expected = [640, 1216, 1856, STEPS] if name == "dqn" else [768, 1280, STEPS]
        self.assertEqual(list(log["step"][evaluated]), expected)
        best = log["evaluation"][evaluated].max()
        when = log["step"][evaluated][log["evaluation"][evaluated].argmax()]
        trained_run = load_run(run, "best")
        self.assertEqual(trained_run.step, when)
        games = play_games(
            functools.partial(make_env, "CartPole-v1"),
            tfdqt.load_policy(run, "best"),
            episodes=2,
            seed=evaluation_seed(0),
        )
        self.assertEqual((games.returns.mean(), games.cut), (best, 0))
        self.assertRegex(trained(name)[1].stdout, rf"\b{best:g}(\.0|00)? at best")
        refused(self, "a policy alone", f"run_{name}", f"--resume={run}", "--checkpoint=best")

    def test_evaluation_changes_nothing_of_what_is_learned(self):
        plain = folder() / "plain"
        flags = (f"--total-steps={STEPS}", "--log-lines=8", *TINY)
        done = succeeds(self, "run_dqn", "--name=CartPole-v1", f"--run-dir={plain}", *flags)
        self.assertNotIn("at best", done.stdout)
        self.assertFalse((plain / "best").exists())
        with_evaluations = load_checkpoint(trained("dqn")[0])[0]
        self.assertEqual(with_evaluations.pop("unevaluated")["step"], STEPS)
        assert_same_tree(self, load_checkpoint(plain)[0], with_evaluations)

    @slow("9 s: a run that is gone on with twice")
    def test_a_score_ends_a_run_that_can_go_on_to_a_higher_one(self):
        run = folder() / "scored"
        self.enterContext(without_xla())  # which compiles for longer than these runs take
        flags = ("--evaluate-every=512", "--evaluate-episodes=1", "--stop-at-score=1")
        done = succeeds(self, "run_pqn", f"--run-dir={run}", *TINY, *flags)
        self.assertIn("Done at step 512", done.stdout)
        self.assertIn("reached --stop-at-score=1.", done.stdout)
        self.assertEqual(load_checkpoint(run)[0]["progress"]["step"], 512)
        resume = (f"--resume={run}", "--workers=0")
        self.assertIn("Done at step 512", succeeds(self, "run_pqn", *resume).stdout)
        more = ("--stop-at-score=501", "--total-steps=1100")
        done = succeeds(self, "run_pqn", *resume, *more)
        self.assertIn("Done at step 1280", done.stdout)
        self.assertEqual(read_settings(run)["stop_at_score"], 501)
        log = read_log(run)
        self.assertEqual(list(log["step"][np.isfinite(log["evaluation"])]), [512, 1024, 1280])

    def test_an_evaluation_that_fails_is_made_up_by_the_resumed_run(self):
        run = folder() / "failing"
        self.enterContext(without_xla())
        flags = ("--total-steps=768", "--evaluate-every=512", "--evaluate-episodes=1")
        fails = EnvFailure("An environment failed: the robot fell over")
        with mock.patch("tfdqt.games.periodic.play_games", side_effect=fails):
            done = call("run_pqn", f"--run-dir={run}", *TINY, *flags)
        self.assertEqual(done.returncode, 2)
        said = done.stderr.splitlines()[-1]
        self.assertRegex(said, f"the robot fell over; what was learned is saved.*--resume={run}")
        self.assertEqual(load_checkpoint(run)[0]["progress"]["step"], 512)
        succeeds(self, "run_pqn", f"--resume={run}", "--workers=0")
        log = read_log(run)
        self.assertEqual(list(log["step"][np.isfinite(log["evaluation"])]), [512, 768])

    def test_a_run_that_is_stopped_before_its_first_update_says_so(self):
        gymnasium.register("Stopping-v0", Stopping)
        self.addCleanup(gymnasium.registry.pop, "Stopping-v0")
        self.enterContext(without_xla())
        flags = ("--name=Stopping-v0", f"--run-dir={folder() / 'stopped'}", *TINY)
        done = call("run_dqn", *flags, "--replay-size=10000")
        self.assertEqual(done.returncode, 128 + signal.SIGTERM, done.stderr)
        self.assertIn("Stopped at step 64: no game has ended yet.", done.stdout)
        self.assertIn("before the first update: nothing is learned yet", done.stdout)

    def test_evaluations_that_can_not_be_are_refused(self):
        refused(self, "give --evaluate-every too", "run_dqn", "--stop-at-score=5")
        more = "--evaluate-every=9"
        refused(self, "must be a number", "run_dqn", more, "--stop-at-score=nan")
        refused(
            self, "--evaluate-episodes must be at least 1", "run_ppo", more, "--evaluate-episodes=0"
        )
        refused(self, "--evaluate-every must be 0 or more", "run_pqn", "--evaluate-every=-1")

    def test_a_run_without_evaluations_has_no_best(self):
        run = folder() / "no-best"
        shutil.copytree(trained("ppo")[0], run)
        shutil.rmtree(run / "best")
        refused(self, "no best checkpoint", "evaluate", run, "--checkpoint=best")

    def test_rewards_that_it_can_not_learn_from_end_it(self):
        gymnasium.register("HugeRewards-v0", HugeRewards)
        self.addCleanup(gymnasium.registry.pop, "HugeRewards-v0")
        for name in ALGORITHMS:
            with self.subTest(algorithm=name), without_xla():
                flags = ["--name=HugeRewards-v0", "--total-steps=512", *TINY]
                kept = "nothing of the run is kept"
                if name == "dqn":
                    flags += ["--learning-starts=128", "--replay-size=2000"]
                    kept = "evaluate.py .*/huge-dqn evaluates it"
                done = call(f"run_{name}", f"--run-dir={folder() / f'huge-{name}'}", *flags)
                self.assertEqual(done.returncode, 2, done.stderr)
                said = done.stderr.splitlines()[-1]
                self.assertRegex(said, f"^error: .*diverged.*--reward-transform=sign.*{kept}")
        saved = load_checkpoint(folder() / "huge-dqn")[0]
        self.assertEqual(saved["progress"]["step"], 128)
        self.assertTrue(all(np.isfinite(part).all() for part in saved["learner"]))

    def test_a_run_that_would_end_before_its_first_update_is_refused(self):
        run = folder() / "short"
        for name in ALGORITHMS:
            with self.subTest(algorithm=name):
                flags = [f"--run-dir={run}", "--total-steps=1024", *TINY]
                if name == "dqn":
                    flags += ["--replay-size=2000"]
                else:
                    flags += ["--standardize", "--rollout-steps=128"]
                refused(self, "give --total-steps=1025 or more", f"run_{name}", *flags)
        self.assertFalse((run / "config.json").exists())

    def test_goes_on_beyond_its_end(self):
        run = folder() / "longer"
        shutil.copytree(trained("pqn")[0], run)
        more = STEPS + 512
        flags = [f"--resume={run}", f"--total-steps={more}", "--workers=0"]
        done = succeeds(self, "run_pqn", *flags)
        self.assertIn(f"Done at step {more}", done.stdout)
        self.assertEqual(read_settings(run)["pqn"]["total_steps"], more)

    @for_each
    def test_is_evaluated(self, name, algorithm, run):
        flags = ["--episodes=3", "--workers=0", "--max-steps=30"]
        done = succeeds(self, "evaluate", run, *flags)
        self.assertRegex(done.stdout, rf"after {STEPS} steps: 3 games at epsilon 0: mean [\d.]+")
        if algorithm.is_policy:
            done = succeeds(self, "evaluate", run, *flags, "--sample")
            self.assertIn("3 games with actions drawn from the policy: mean", done.stdout)
        else:
            refused(self, "--sample draws from the policy", "evaluate", run, "--sample")
        with open(run / "evaluation.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 6 if algorithm.is_policy else 3)
        policy = tfdqt.load_policy(run, seed=1_000)
        env_fn = functools.partial(make_env, "CartPole-v1")
        returns, _ = play_episodes(env_fn, policy, episodes=3, seed=1_000, max_steps=30)
        self.assertEqual([float(row["return"]) for row in rows[:3]], list(returns))

    @for_each
    def test_is_usable_in_three_lines(self, name, algorithm, run):
        policy = tfdqt.load_policy(run)
        policy.reset()
        env = make_env("CartPole-v1")
        obs, _ = env.reset(seed=0)
        run_of = load_run(run)
        window = make_window(run_of.info, 1, run_of.net.context)
        act = make_act(run_of.net, algorithm.scores)
        action = -1
        for step in range(5):
            push(window, obs[None], np.array([step == 0]), np.array([action]))
            action = policy(obs)
            self.assertEqual(action, int(act(run_of.weights, network_inputs(window))[0]))
            obs = env.step(action)[0]

    @for_each
    def test_is_exported(self, name, algorithm, run):
        rng = np.random.default_rng(0)
        inputs = dict(
            obs=rng.normal(size=(5, 2, 4)).astype("float32"),
            first=np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]], "int32"),
        )
        out = folder() / f"{name}-exported"
        done = succeeds(self, "export", run, out)
        signature, values = (
            ("policy", "policy") if algorithm.is_policy else ("q_values", "q_values")
        )
        self.assertIn(f"{out}: signatures {signature} and action; inputs obs", done.stdout)
        run_of = load_run(run)
        scores = algorithm.scores(run_of.net.apply(run_of.weights, inputs))[:, -1].numpy()
        if algorithm.is_policy:
            expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            alone = call_alone(self, out, signature, signature=signature, **inputs)
            given, action = alone["q"], alone["a"]
        else:  # test_scripts does the same in a process with TensorFlow alone
            expected = scores
            # Nothing that a TensorFlow without XLA would not know.
            self.assertNotIn(b"XlaOptimizationBarrier", (out / "saved_model.pb").read_bytes())
            model = tf.saved_model.load(str(out))
            tensors = {key: tf.constant(value) for key, value in inputs.items()}
            given = model.signatures[signature](**tensors)[signature].numpy()
            action = model.signatures["action"](**tensors)["action"].numpy()
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(action, scores.argmax(axis=1))
        refused(self, "--tflite is for text runs", "export", run, folder() / "no", "--tflite=x")

    def test_all_are_drawn_in_one_picture(self):
        runs = [trained(name)[0] for name in ALGORITHMS]
        picture = folder() / "all.png"
        done = succeeds(self, "plot", *runs, f"--out={picture}", "--x=seconds")
        self.assertEqual(done.stdout.strip(), str(picture))
        self.assertGreater(picture.stat().st_size, 5_000)

    def test_only_its_own_script_goes_on_with_it(self):
        names = list(ALGORITHMS)
        for name, other in zip(names, names[1:] + names[:1]):
            run = trained(name)[0]
            refused(self, f"not a run of {other.upper()}", f"run_{other}", f"--resume={run}")

    def test_an_unknown_one_is_refused(self):
        run = folder() / "unknown"
        shutil.copytree(trained("dqn")[0], run)
        path = run / "config.json"
        path.write_text(path.read_text().replace('"algorithm": "dqn"', '"algorithm": "sarsa"'))
        refused(self, "not a run of DQN", "run_dqn", f"--resume={run}")
        for name, *flags in (
            ("evaluate", run),
            ("plot", run),
            ("export", run, folder() / "nothing"),
        ):
            with self.subTest(script=name):
                refused(self, "sarsa, which is not known here; .*dqn, ppo, pqn", name, *flags)
        with self.assertRaisesRegex(UsageError, "sarsa, which is not known here"):
            tfdqt.load_policy(run)

    def test_a_config_without_a_name_is_refused(self):
        run = folder() / "nameless"
        shutil.copytree(trained("dqn")[0], run)
        path = run / "config.json"
        settings = json.loads(path.read_text())
        del settings["name"]
        path.write_text(json.dumps(settings))
        with self.assertRaisesRegex(UsageError, "config.json has no name; put back"):
            tfdqt.load_policy(run)

    def test_nothing_to_draw_from_is_refused(self):
        with self.assertRaisesRegex(UsageError, "--sample draws from the policy"):
            tfdqt.load_policy(trained("dqn")[0], sample=True)
        with self.assertRaisesRegex(UsageError, "without --epsilon"):
            tfdqt.load_policy(trained("ppo")[0], sample=True, epsilon=0.1)


class OtherNetworks(unittest.TestCase):
    def check(self, names, cfgs):
        """All weights of a network are learned, but those on what is never seen, and finite."""
        for name, cfg in itertools.product(names, cfgs):
            with self.subTest(algorithm=name, network=cfg.network), without_xla():
                algorithm = ALGORITHMS[name]
                build = functools.partial(algorithm.build, cfg=cfg)
                settings = algorithm.settings(
                    total_steps=512, num_envs=4, batch_size=32, **SHORT[name]
                )
                state, net, progress = algorithm.train(Corridor, build, settings, workers=0)
                weights = getattr(state, algorithm.acting).numpy()
                self.assertEqual(progress.step, 512)
                self.assertTrue(np.isfinite(weights).all())
                self.assertGreater(np.mean(weights != net.start), 0.8)  # the end is never read

    def test_ppo_and_pqn_train_a_gru(self):
        self.check(("ppo", "pqn"), [NetworkConfig(network="gru", context=2, layers=1, width=4)])

    @slow("15 s: three algorithms train two networks")
    def test_each_algorithm_trains_each(self):
        self.check(
            ALGORITHMS,
            [
                NetworkConfig(network="gru", context=3, width=8, prev_action=True),
                NetworkConfig(network="dense", context=3, hidden=(8, 16), residual=True),
            ],
        )


class OldRuns(unittest.TestCase):
    """Runs of 0.1.0: the log's lines were called `epochs`, ScaleConfig `far`; later fields miss."""

    def old(self, **more):
        """A run whose config.json is as 0.1.0 wrote it."""
        run = folder() / f"old-{len(list(folder().iterdir()))}"
        shutil.copytree(trained("dqn")[0], run)
        now = json.loads((run / "config.json").read_text())
        network = {key: value for key, value in now["network"].items() if key != "layer_norm"}
        settings = dict(
            version="0.1.0",
            algorithm="dqn",
            name="CartPole-v1",
            seed=0,
            epochs=8,
            checkpoint_every=512,
            network=network,
            dqn=now["dqn"],
            **more,
        )
        (run / "config.json").write_text(json.dumps(settings, indent=2))
        return run

    def test_they_go_on(self):
        far = dict(actors=0, ray_address=None, broadcast_every=64, strategy="none")
        run = self.old(far=far)
        shutil.rmtree(checkpoints(run)[-1])
        flags = ("--workers=0", "--evaluate-every=600", "--evaluate-episodes=2")
        done = succeeds(self, "run_dqn", f"--resume={run}", *flags)
        self.assertRegex(done.stderr, rf"Epoch: 8 \| {STEPS} \| .*\| 8/8")
        whole = trained("dqn")[0]
        assert_same_tree(self, load_checkpoint(whole)[0], load_checkpoint(run)[0])
        self.assertEqual(log_without_time(whole), log_without_time(run))

    def test_with_more_steps_they_keep_what_they_are(self):
        run = self.old()
        succeeds(self, "run_dqn", f"--resume={run}", f"--total-steps={STEPS + 64}", "--workers=0")
        settings = read_settings(run)
        self.assertEqual(settings["dqn"]["total_steps"], STEPS + 64)
        self.assertEqual(settings["epochs"], 8)

    def test_they_are_evaluated_drawn_and_exported(self):
        run = self.old(far=dict(actors=0, broadcast_every=64, strategy="none"))
        self.assertEqual(read_settings(run)["scale"].broadcast_every, 64)
        succeeds(self, "evaluate", run, "--episodes=1", "--workers=0", "--max-steps=9")
        picture = folder() / "old.png"
        # Settings that came later are as by default: it is drawn as one kind with the new one.
        with mock.patch("tfdqt.runs.plots.plot_learning") as drawn:
            succeeds(self, "plot", run, trained("dqn")[0], f"--out={picture}")
        ((label, logs),) = drawn.call_args[0][0].items()
        self.assertEqual((label, len(logs)), ("CartPole-v1 DQN dense", 2))
        succeeds(self, "export", run, folder() / "old-exported")

    def test_a_run_with_actors_goes_on_with_actors(self):
        run = self.old(far=dict(actors=2, ray_address=None, broadcast_every=9, strategy="none"))
        self.assertEqual(read_settings(run)["scale"].actors, 2)
        refused(self, "started with --actors", "run_dqn", f"--resume={run}", "--actors=0")


if __name__ == "__main__":
    unittest.main()
