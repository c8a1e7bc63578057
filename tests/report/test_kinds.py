"""Which runs are of one kind, and what tells others apart."""

import json
import unittest

from tests.helpers import InFolder
from tfdqt.report import kinds


class Names(InFolder):
    def test_runs_of_one_name_are_told_apart_by_what_differs(self):
        short, long = (
            dict(
                algorithm="dqn",
                name="Pong",
                seed=seed,
                network=dict(network="gpt", width=8),
                dqn=dict(total_steps=steps),
            )
            for seed, steps in ((0, 10), (1, 20))
        )
        self.assertEqual(kinds.name_of(short), "Pong DQN gpt")
        self.assertEqual(kinds.differences(short, [short, long]), ", total_steps=10")
        self.assertEqual(kinds.differences(long, [long]), "")

    def test_what_is_equal_is_of_one_kind(self):
        one = dict(algorithm="dqn", name="Pong", seed=0, network=dict(network="gpt"))
        settings = dict(a=dict(one, dqn=dict(gamma=1)), b=dict(one, dqn=dict(gamma=1.0)))
        self.assertEqual(list(kinds.group_runs(["a", "b"], settings).values()), [["a", "b"]])

    def test_settings_that_came_later_are_as_by_default(self):
        old = dict(algorithm="dqn", name="Pong", seed=0, network={}, dqn=dict(total_steps=10))
        new = dict(old, network=dict(width=8), scale=dict(actors=2), log_lines=7)
        older = dict(old, far=dict(actors=0), epochs=9)
        settings = {}
        for name, plain in dict(old=old, new=new, older=older).items():
            folder = self.tmp / name
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(plain))
            settings[name] = kinds.settings_of(folder)
        both = [settings["old"], settings["new"]]
        self.assertEqual(kinds.differences(settings["new"], both), ", width=8, actors=2")
        self.assertEqual(kinds.flat(settings["old"]), kinds.flat(settings["older"]))


if __name__ == "__main__":
    unittest.main()
