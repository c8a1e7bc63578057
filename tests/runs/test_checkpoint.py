"""Checkpoints that survive a crash, and what is said of those that did not."""

import contextlib
import errno
import json
import os
import shutil
import unittest
from unittest import mock

import numpy as np

from tests.helpers import InFolder
from tfdqt.errors import UsageError
from tfdqt.runs.checkpoint import (
    checkpoints,
    last_good,
    load_checkpoint,
    make_saver,
    newest_common,
    packable,
    save_checkpoint,
)
from tfdqt.runs.folder import start_run
from tfdqt.scale.distribute import SINGLE, ProcessGroup


class Checkpoints(InFolder):
    def started(self, name="run"):
        return start_run(self.tmp / name, name="CartPole-v1", seed=0)

    def assertSame(self, loaded, expected):
        self.assertIs(type(loaded), type(expected))
        if isinstance(expected, np.ndarray):
            self.assertEqual((loaded.dtype, loaded.shape), (expected.dtype, expected.shape))
            np.testing.assert_array_equal(loaded, expected)
        elif isinstance(expected, dict):
            self.assertEqual(list(loaded), list(expected))
            for key, value in expected.items():
                self.assertSame(loaded[key], value)
        elif isinstance(expected, (list, tuple)):
            self.assertEqual(len(loaded), len(expected))
            for one, other in zip(loaded, expected):
                self.assertSame(one, other)
        else:
            self.assertEqual(loaded, expected)

    def saved(self, *steps):
        run = self.started()
        return run, [
            save_checkpoint(run, step, dict(step=step, weights=np.arange(1_000.0)))
            for step in steps
        ]

    def refused(self, run, *words, path=None):
        with self.assertRaises(UsageError) as caught:
            load_checkpoint(run, path)
        for word in words:
            self.assertIn(word, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))

    def test_round_trip(self):
        run = self.started()
        arrays = {
            name: (np.arange(6) % 2).reshape(2, 3).astype(name)
            for name in (
                "bool",
                "int8",
                "uint8",
                "int16",
                "uint16",
                "int32",
                "uint32",
                "int64",
                "uint64",
                "float16",
                "float32",
                "float64",
                "complex64",
                "complex128",
                "<U3",
                "S2",
            )
        }
        tree = dict(
            arrays=arrays,
            zero_d=np.array(3.5),
            empty=np.zeros((0, 4), np.uint8),
            nan=np.array([np.nan, np.inf, -0.0]),
            fortran=np.asfortranarray(np.arange(12).reshape(3, 4)),
            part=np.arange(20)[::3],
            nothing=None,
            yes=True,
            no=False,
            pair=(1, (2.5, None), ()),
            several=[],
            mixed=[(1, "a"), {"b": [None]}],
            empty_dict={},
            text='quotes " and\nlines, \u00e9',
            huge=2**127 + 1,
            negative=-(2**70),
            tenth=0.1,
            infinite=float("inf"),
            rng=np.random.default_rng(3).bit_generator.state,
        )
        path = save_checkpoint(run, 12, tree)
        loaded, where = load_checkpoint(run)
        self.assertEqual(where, path)
        self.assertSame(loaded, tree)
        rng = np.random.default_rng(99)
        rng.bit_generator.state = loaded["rng"]
        self.assertEqual(rng.random(), np.random.default_rng(3).random())

    def test_numpy_scalars_keep_their_value(self):
        run = self.started()
        save_checkpoint(
            run, 1, dict(a=np.float32(0.1), b=np.int64(2**62), c=np.bool_(True), d=np.uint8(7))
        )
        self.assertEqual(
            load_checkpoint(run)[0], dict(a=float(np.float32(0.1)), b=2**62, c=True, d=7)
        )

    def test_what_it_cannot_hold(self):
        run, _ = self.saved(1)
        for tree in (
            dict(a=object()),
            dict(a={1, 2}),
            dict(a=np.array([None, "x"], object)),
            {1: "a key that is no text"},
        ):
            with self.subTest(tree=tree), self.assertRaises(TypeError):
                save_checkpoint(run, 2, tree)
        self.assertEqual(load_checkpoint(run)[0]["step"], 1)

    def test_what_it_can_hold_is_known_before(self):
        circle = []
        circle.append(circle)
        for tree in (
            object(),
            [dict(a={1, 2})],
            np.array([None, "x"], object),
            np.ma.array([1, 2], mask=[True, False]),
            {1: "a key that is no text"},
            {"__array__": "a key of tree.json's own"},
            10**5_000,  # more digits than Python reads
            circle,
        ):
            with self.subTest(tree=type(tree)):
                self.assertFalse(packable(tree))
        tree = dict(a=[1, (2.5, None)], b=np.zeros(3), c=dict(d=True, e="x"), f=np.float32(0.1))
        self.assertTrue(packable(tree))
        self.assertSame(load_checkpoint(self.kept(tree))[0]["a"], tree["a"])

    def kept(self, tree):
        run = self.started()
        save_checkpoint(run, 1, tree)
        return run

    def test_newest_two_are_kept(self):
        run, _ = self.saved(5, 50, 500, 5_000_000)
        self.assertEqual(
            [path.name for path in checkpoints(run)],
            ["step-000000000500", "step-000005000000"],
        )
        self.assertEqual(load_checkpoint(run)[0]["step"], 5_000_000)

    def test_older_one_by_name(self):
        run, paths = self.saved(1, 2)
        self.assertEqual(load_checkpoint(run, str(paths[0]))[0]["step"], 1)

    def test_going_on_from_an_older_one_leaves_the_abandoned_one_behind(self):
        run, _ = self.saved(100, 200)
        save_checkpoint(run, 150, dict(step=150))  # the run went on from 100
        self.assertEqual(load_checkpoint(run)[0]["step"], 150)

    def test_the_abandoned_one_goes_before_the_new_one_comes(self):
        run, _ = self.saved(100, 200)
        with mock.patch("os.rename", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                save_checkpoint(run, 150, dict(step=150))
        self.assertEqual(load_checkpoint(run)[0]["step"], 100)

    def test_new_one_is_never_the_one_that_goes(self):
        run, _ = self.saved(100, 200)
        path = save_checkpoint(
            run, 50, dict(step=50)
        )  # the run went on from a copy of one that is gone
        self.assertTrue(path.is_dir())

    def test_same_step_again(self):
        run, _ = self.saved(1, 2)
        save_checkpoint(run, 2, dict(step="again"))
        self.assertEqual(load_checkpoint(run)[0], dict(step="again"))
        self.assertEqual(len(checkpoints(run)), 2)

    def test_none_yet(self):
        self.refused(self.started(), "no checkpoint yet")

    def test_damage_names_the_last_good_one(self):
        def truncated(path):
            data = (path / "arrays.npz").read_bytes()
            (path / "arrays.npz").write_bytes(data[: len(data) // 2])

        def changed_byte(path):
            data = bytearray((path / "arrays.npz").read_bytes())
            data[len(data) // 2] ^= 1
            (path / "arrays.npz").write_bytes(data)

        def changed_tree(path):
            text = (path / "tree.json").read_text()
            (path / "tree.json").write_text(text.replace('"step": 2', '"step": 3'))

        def foreign(path):
            manifest = json.loads((path / "manifest.json").read_text())
            (path / "manifest.json").write_text(json.dumps({**manifest, "format": "other-9"}))

        for damage, words in (
            (truncated, "bytes of"),
            (changed_byte, "contents of arrays.npz have changed"),
            (changed_tree, "contents of tree.json have changed"),
            (foreign, "not one of tfdqt's"),
            (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
            (lambda path: (path / "manifest.json").write_text("{"), "manifest.json"),
            (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json"),
            (lambda path: (path / "tree.json").unlink(), "tree.json is missing"),
            (lambda path: (path / "arrays.npz").unlink(), "arrays.npz is missing"),
        ):
            with self.subTest(words=words):
                run, (good, bad) = self.saved(1, 2)
                damage(bad)
                self.refused(run, words, str(bad), f"--checkpoint={good}")
                self.assertEqual(last_good(run), good)
                self.assertEqual(load_checkpoint(run, good)[0]["step"], 1)
                shutil.rmtree(run)

    def test_all_damaged(self):
        run, paths = self.saved(1, 2)
        for path in paths:
            (path / "manifest.json").unlink()
        self.assertIsNone(last_good(run))
        self.refused(run, "no other one is whole")

    def test_path_that_is_no_checkpoint(self):
        run, (good,) = self.saved(1)
        self.refused(run, f"--checkpoint={good}", path=run / "checkpoints" / "nowhere")
        for path in (self.tmp / "nowhere", run / "config.json"):
            self.refused(run, f"{path} is not one of {run}", path=path)

    def test_full_disk_leaves_the_others_whole(self):
        run, (_, good) = self.saved(1, 2)

        def full(file, **arrays):
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with mock.patch("numpy.savez", full), self.assertRaises(UsageError) as caught:
            save_checkpoint(run, 3, dict(step=3, weights=np.arange(1_000.0)))
        for word in ("step 3", os.strerror(errno.ENOSPC), str(good), f"--resume={run}"):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(
            sorted(os.listdir(run / "checkpoints")), ["step-000000000001", "step-000000000002"]
        )
        self.assertEqual(load_checkpoint(run)[0]["step"], 2)
        save_checkpoint(run, 3, dict(step=3))  # there is room again
        self.assertEqual(load_checkpoint(run)[0]["step"], 3)

    def test_full_disk_before_the_first_one(self):
        run = self.started()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            mock.patch("numpy.savez", side_effect=full),
            self.assertRaisesRegex(UsageError, "none before it"),
        ):
            save_checkpoint(run, 3, dict(step=3))
        self.assertEqual(os.listdir(run / "checkpoints"), [])

    def test_crash_while_writing(self):
        run, _ = self.saved(1, 2)
        with (
            mock.patch("numpy.savez", side_effect=KeyboardInterrupt),
            contextlib.suppress(KeyboardInterrupt),
        ):
            save_checkpoint(run, 3, dict(step=3))
        self.assertEqual(load_checkpoint(run)[0]["step"], 2)
        save_checkpoint(run, 4, dict(step=4))
        self.assertEqual(
            sorted(os.listdir(run / "checkpoints")), ["step-000000000002", "step-000000000004"]
        )


class Saver(InFolder):
    def started(self, name="run"):
        return start_run(self.tmp / name, name="CartPole-v1", seed=0)

    def calls(self, save, *steps, last=None):
        made = []
        for step in steps:
            save(step, lambda: made.append(step) or dict(step=step), last=step == last)
        return made

    def test_every_so_often_and_at_the_end(self):
        save = make_saver(self.started(), 100)
        self.assertEqual(
            self.calls(save, 32, 64, 96, 128, 160, 192, 224, 256, last=256), [128, 224, 256]
        )

    def test_end_that_is_saved_already(self):
        save = make_saver(self.started(), 100)
        self.assertEqual(self.calls(save, 50, 100), [100])
        self.assertEqual(self.calls(save, 100, last=100), [])

    def test_resumed(self):
        save = make_saver(self.started(), 100, resume_step=128)
        self.assertEqual(self.calls(save, 160, 192, 224, 330, last=330), [224, 330])


class Best(InFolder):
    def keep(self, step):
        tree = dict(step=step)
        return save_checkpoint(self.tmp, step, tree, folder="best", kept=1)

    def test_one_is_kept_beside_the_others(self):
        with self.assertRaisesRegex(UsageError, "no best checkpoint, .*--evaluate-every"):
            load_checkpoint(self.tmp, "best", best_too=True)
        save_checkpoint(self.tmp, 40, dict(step=40))
        for step in (10, 30, 20):  # the last after going on from an older one
            path = self.keep(step)
            self.assertEqual(list((self.tmp / "best").iterdir()), [path])
            self.assertEqual(load_checkpoint(self.tmp, "best", best_too=True)[0], dict(step=step))
        self.assertEqual(load_checkpoint(self.tmp, path, best_too=True)[0], dict(step=20))
        self.assertEqual(load_checkpoint(self.tmp)[0], dict(step=40))

    def test_only_who_asks_for_it_gets_it(self):
        save_checkpoint(self.tmp, 40, dict(step=40))
        for path in ("best", self.keep(10)):
            with self.assertRaisesRegex(UsageError, "is not one of"):
                load_checkpoint(self.tmp, path)


class Common(InFolder):
    """The newest checkpoint of which each of two processes has one."""

    def newest(self, own, others):
        for step in own:
            save_checkpoint(self.tmp, step, dict(step=step))
        group = ProcessGroup(2, 0, lambda steps: steps + np.array([[0, 0], others]))
        return newest_common(self.tmp, group).name

    def test_it_is_named(self):
        self.assertEqual(self.newest([10, 20], [20, 30]), "step-000000000020")

    def test_one_checkpoint_alone(self):
        self.assertEqual(self.newest([10], [10, 0]), "step-000000000010")

    def test_there_is_none(self):
        with self.assertRaisesRegex(UsageError, "No step has .*10, 20"):
            self.newest([10, 20], [30, 40])

    def test_a_process_by_itself_has_its_newest(self):
        save_checkpoint(self.tmp, 5, dict(step=5))
        self.assertEqual(newest_common(self.tmp, SINGLE).name, "step-000000000005")


if __name__ == "__main__":
    unittest.main()
