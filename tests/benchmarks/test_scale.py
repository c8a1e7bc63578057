"""The model of many actors, against what it gave for the page."""

import csv
import json
import unittest

import scale_model

from . import BENCHMARKS

PARTS = json.loads((BENCHMARKS / "scale" / "scale-parts.json").read_text())
NUMBERS = dict(actors=int, chunk=int, faster=float, broadcast_every=int)


class TestModel(unittest.TestCase):
    def test_it_gives_the_figures_of_the_page(self):
        with open(BENCHMARKS / "scale" / "scale-model.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["actors"] in ("1", "100")]
        self.assertEqual(len(rows), 8)
        for row in rows:
            setting = {key: number(row[key]) for key, number in NUMBERS.items()}
            model = scale_model.simulate(PARTS, setting.pop("actors"), **setting)
            for key in ("steps_per_second", "learner_busy", "outward_busy", "actors_busy"):
                self.assertEqual(f"{model[key]:.6g}", f"{float(row[key]):.6g}", key)

    def test_what_is_slowest_sets_the_pace(self):
        """One actor of a second a step, and a learner that takes no time."""
        free = dict.fromkeys(("take_4", "add_4", "update", "broadcast"), 0.0)
        parts = dict(free, bytes_4=0, weights_bytes=0, actor_4=1.0, envs=2, updates_per_step=0.25)
        model = scale_model.simulate(parts, 1, chunks=400)
        self.assertAlmostEqual(model["steps_per_second"], 1.0, delta=0.02)
        self.assertAlmostEqual(model["actors_busy"], 1.0, delta=0.02)
        self.assertEqual(model["learner_busy"], 0.0)


if __name__ == "__main__":
    unittest.main()
