"""The page of runs: what it says, that its charts can be drawn, and that it works in a browser."""

import base64
import functools
import importlib.util
import io
import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from tests.helpers import InFolder, call, refused, succeeds
from tfdqt.errors import UsageError
from tfdqt.games.flat import scores_at_last
from tfdqt.games.trained import load_run
from tfdqt.report import explained, film, page
from tfdqt.report.explained import Explained, play_explained, what_followed
from tfdqt.report.gather import (
    curve_rows,
    distance_rows,
    evaluations,
    finished_logs,
    gather,
    on_common_steps,
    search_rows,
    shown_way,
    state_of,
)
from tfdqt.runs.log import read_log, read_rows, write_rows

HAS_VEGA = importlib.util.find_spec("vl_convert") is not None
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SMALL = ["--width=8", "--heads=2", "--context=2", "--batch-size=8", "--num-envs=2", "--threads=1"]
# What a visitor does: steps on, drags the slider, and asks for seconds instead of steps.
VISIT = """
<script>
const wait = setInterval(() => {
  if (document.body.dataset.ready !== "yes") return;
  clearInterval(wait);
  const get = (id) => document.getElementById(id);
  const said = [get("film-said").textContent];
  get("film-on").click();
  said.push(get("film-said").textContent);
  get("film-step").value = 5;
  get("film-step").dispatchEvent(new Event("input"));
  said.push(get("film-said").textContent);
  document.querySelector("input[value=seconds]").click();
  document.body.dataset.said = said.join("|");
  document.body.dataset.charts = document.querySelectorAll(".chart svg").length;
  const captions = [...document.querySelectorAll("figcaption")];
  document.body.dataset.maps = captions.map((each) => each.textContent).join("|");
  document.body.dataset.picture = get("film-picture").src.slice(0, 22);
}, 50);
</script>
"""


@functools.cache
def folder():
    made = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(made.cleanup)
    return Path(made.name)


@functools.cache
def cartpole_run():
    run_dir = folder() / "pole"
    flags = ["--name=CartPole-v1", f"--run-dir={run_dir}", "--total-steps=1200", *SMALL]
    done = call("run_dqn", *flags, "--learning-starts=100", "--workers=0")
    assert done.returncode == 0, done.stderr
    call("evaluate", run_dir, "--episodes=6", "--workers=0")
    return run_dir


def another_seed(run_dir):
    """A copy of the run as if of seed 1, whose returns are all 5 greater."""
    shutil.copytree(cartpole_run(), run_dir)
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config | dict(seed=1)))
    rows = read_rows(run_dir / "log.csv")
    rows = [row | dict(mean_return=float(row["mean_return"]) + 5) for row in rows]
    write_rows(run_dir / "log.csv", rows)
    return run_dir


@functools.cache
def one_page():
    """The page of a run, for several tests."""
    out = folder() / "report.html"
    done = call("report", cartpole_run(), "--game-steps=8", f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out.read_text(encoding="utf-8")


def data_of(text, name):
    found = re.search(rf'<script type="application/json" id="data-{name}">(.*?)</script>', text)
    return json.loads(found[1])


@unittest.skipUnless(HAS_VEGA, "needs: pip install --no-deps -r requirements-report.txt")
class TestPage(InFolder):
    def make(self, *runs, **flags):
        out = self.tmp / "report.html"
        said = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        succeeds(self, "report", *runs, f"--out={out}", *said)
        return out.read_text(encoding="utf-8")

    def head_of(self, *runs, **flags):
        """What a page says, without its data and scripts, which no failure needs to show."""
        return self.make(*runs, **flags).split("<script")[0]

    def test_a_page_of_two_seeds(self):
        runs = [cartpole_run(), another_seed(self.tmp / "second")]
        text = self.make(*runs, game_steps=8)
        head = text.split("<script")[0]
        self.assertNotRegex(head, r'(src|href)="?http')
        for said in ("finished, 1,200 steps", "total-steps", "95% interval", "overestimating"):
            self.assertIn(said, head)
        drawn = data_of(text, "charts")
        names = {"learning", "returns", "lengths", "columns", "overestimation", "timeline"}
        self.assertEqual(set(drawn), names)
        # The band is that of both seeds at the end.
        ends = [read_log(run)["mean_return"][-1] for run in runs]
        rows = [row for row in drawn["learning"]["data"]["values"] if row["over"] == "step"]
        self.assertEqual(rows[-1]["seeds"], 2)
        np.testing.assert_allclose([rows[-1]["low"], rows[-1]["high"]], sorted(ends), rtol=0.02)

    def test_every_chart_can_be_drawn(self):
        import vl_convert

        for name, spec in data_of(one_page(), "charts").items():
            with self.subTest(name):
                spec["width"] = 400
                self.assertIn("<path", vl_convert.vegalite_to_svg(spec))

    @unittest.skipUnless(CHROMIUM, "needs Chromium")
    def test_in_a_browser(self):
        text = one_page()
        visited = self.tmp / "visited.html"
        begin, end = text.rsplit("</body>", 1)  # scripts hold the word too
        visited.write_text(f"{begin}{VISIT}</body>{end}", encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        flags += [f"--user-data-dir={self.tmp / 'profile'}", "--virtual-time-budget=20000"]
        command = [CHROMIUM, *flags, "--dump-dom", f"file://{visited}"]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        body = re.search(r"<body[^>]*>", dom)[0]
        self.assertIn('data-charts="6"', body)
        self.assertRegex(body, r'data-said="Step 0 of 7: [^|]*\|Step 1 of 7[^|]*\|Step 5 of 7')
        self.assertRegex(body, r'data-maps="which action: [0-3][^|]*\|how good: [0-3]')
        self.assertIn('data-picture="data:image/jpeg;base64', body)

    def test_what_is_shown_of_a_game(self):
        shown = data_of(one_page(), "film")
        self.assertEqual([len(shown[key]) for key in ("frames", "scores", "chosen")], [8] * 3)
        trained = load_run(cartpole_run())
        played = play_explained(trained, seed=1_000, max_steps=8)
        best = played.scores.argmax(axis=1)
        self.assertEqual(shown["chosen"], [[action] for action in best])
        np.testing.assert_allclose(shown["scores"], played.scores, rtol=1e-3)
        self.assertEqual(played.chosen.argmax(axis=1).tolist(), best.tolist())
        np.testing.assert_allclose(played.attention.sum(axis=-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(played.attention[0, :, 0], 0.0)  # there is no step before
        self.assertEqual(played.maps.values.shape, (8, 2, 1, 4))
        self.assertEqual(shown["maps"]["strongest"][3][0], played.maps.strongest(3, 0))

        from PIL import Image

        picture = Image.open(io.BytesIO(base64.b64decode(shown["frames"][0])))
        self.assertEqual(picture.width, page.WIDEST)

    def test_unfinished_and_unlogged_runs(self):
        run_dir = self.tmp / "half"
        shutil.copytree(cartpole_run(), run_dir)
        (run_dir / "evaluation.csv").unlink()
        config = json.loads((run_dir / "config.json").read_text())
        config["dqn"]["total_steps"] = 5_000
        (run_dir / "config.json").write_text(json.dumps(config))
        shutil.rmtree(run_dir / "checkpoints")
        text = self.head_of(run_dir)
        self.assertIn("unfinished: 1,200 of 5,000 steps; it has no checkpoint", text)
        self.assertIn("None yet: <code>python scripts/evaluate.py", text)
        (run_dir / "log.csv").unlink()
        self.assertIn("has no log yet", self.head_of(run_dir))

    def test_names_can_not_break_the_page(self):
        run_dir = self.tmp / "<b>&"
        shutil.copytree(cartpole_run(), run_dir)
        text = self.make(run_dir, game_steps=3)
        self.assertIn("&lt;b&gt;&amp;", text.split("<script")[0])
        self.assertEqual(text.count("<b>&"), 0)

    def test_what_can_not_be_is_said(self):
        refused(self, "There is no run", "report", "nowhere")
        refused(self, "--texts is for texts", "report", cartpole_run(), "--texts=3")
        refused(
            self, "--epsilon is of a game", "report", cartpole_run(), "--no-game", "--epsilon=1"
        )
        refused(self, "Name one or more", "report")
        refused(
            self, "can't be written", "report", cartpole_run(), f"--out={self.tmp}", "--no-game"
        )
        refused(self, "There is no folder", "report", cartpole_run(), f"--out={self.tmp}/no/r.html")
        with mock.patch.dict("sys.modules", vl_convert=None):
            with self.assertRaisesRegex(UsageError, "requirements-report.txt"):
                page.vega.__wrapped__()


class TestExplained(unittest.TestCase):
    def game(self, rewards, lost, ended):
        count = len(rewards)
        return Explained(
            frames=None,
            scores=np.zeros((count, 2)),
            quantiles=None,
            chosen=np.eye(2, dtype=bool)[np.zeros(count, int)],
            rewards=np.array(rewards, float),
            life_lost=np.array(lost, bool),
            attention=None,
            maps=None,
            names=("0", "1"),
            ended=ended,
        )

    def test_returns_that_followed_by_hand(self):
        game = self.game([1, 0, 3, 2], [0, 1, 0, 0], True)
        plain = SimpleNamespace(gamma=0.5, reward_transform="none", life_loss_ends=False)
        np.testing.assert_allclose(what_followed(game, plain), [2.0, 2.0, 4.0, 2.0])
        lives = SimpleNamespace(gamma=0.5, reward_transform="sign", life_loss_ends=True)
        np.testing.assert_allclose(what_followed(game, lives), [1.0, 0.0, 1.5, 1.0])

    def test_of_a_game_that_was_cut_short_the_end_is_not_known(self):
        game = self.game([1.0] * 10, [0] * 10, False)
        known = what_followed(game, SimpleNamespace(gamma=0.5))
        self.assertEqual(np.isfinite(known).tolist(), [True] * 4 + [False] * 6)  # 0.5^7 < 0.01

    def test_a_film_marks_what_was_chosen_and_a_life_that_is_lost(self):
        game = self.game([0.0, 1.0], [0, 1], False)._replace(
            frames=[np.zeros((210, 160, 3), np.uint8)] * 2,
            scores=np.array([[0.2, 1.0], [0.5, 0.1]]),
            quantiles=np.array([[[0.1, 0.3], [0.9, 1.1]]] * 2),
            chosen=np.eye(2, dtype=bool)[[1, 0]],
            attention=np.full((2, 1, 4), 0.25),
        )
        from PIL import Image

        panel = film.Panel(game)
        one, other = (panel.draw(step) for step in (0, 1))
        self.assertEqual(one.shape, (420, 320 + film.PANEL, 3))
        for picture, chosen in ((one, 1), (other, 0)):
            marked = (picture[:, 320 + 90 :] == film.MARK).all(axis=-1).any(axis=1)
            row = 34 + chosen * film.ROW
            self.assertTrue(marked[row : row + film.ROW].any())
        self.assertFalse((one == film.LOST).all(axis=-1).any())
        self.assertTrue((other[:, :320] == film.LOST).all(axis=-1).any())
        with tempfile.TemporaryDirectory() as out:
            path = film.film_explained(game, out)
            self.assertGreater(path.stat().st_size, 1_000)
            with Image.open(path.with_suffix(".gif")) as small:
                self.assertEqual(small.width, film.GIF_WIDTH)
        with self.assertRaisesRegex(UsageError, "no picture"):
            film.film_explained(game._replace(frames=None), "nowhere")

    def test_scores_are_those_that_choose(self):
        trained = load_run(cartpole_run())
        look = explained.Look(trained)
        window = dict(
            obs=np.ones((1, 2, 4), np.float32),
            first=np.array([[1, 0]], np.int32),
            prev_action=np.full((1, 2), -1, np.int32),
        )
        scores, _, _ = look.at(window)
        known = scores_at_last(trained.algorithm.scores)(trained.net.apply(trained.weights, window))
        np.testing.assert_allclose(scores, np.asarray(known)[0], rtol=1e-5)


class TestGather(unittest.TestCase):
    def test_puzzles_by_the_length_of_their_solutions(self):
        each = dict(
            run="a",
            step=1,
            how=dict(simulations="4"),
            distances=[3.0, 4.0, 20.0, 19.0],
            returns=[1.0, 0.0, 1.0, 1.0],
        )
        rows = distance_rows([each, dict(each, how={})])  # one without a search is left out
        found = [(row["span"], row["games"], row["mean"]) for row in rows]
        self.assertEqual(found, [("3 to 5", 2, 0.5), ("18 to 20", 2, 1.0)])
        self.assertEqual(distance_rows([dict(each, distances=[float("nan")] * 4)]), [])

    def test_runs_of_one_name_in_two_folders_are_not_taken_for_one(self):
        with tempfile.TemporaryDirectory() as other:
            second = another_seed(Path(other) / cartpole_run().name)
            (group,) = gather([str(cartpole_run()), str(second)])
        self.assertEqual(group.names, [str(cartpole_run()), str(second)])
        (group,) = gather([str(cartpole_run())])
        self.assertEqual(group.names, ["pole"])

    def test_a_run_that_is_named_twice_counts_once(self):
        run = cartpole_run()
        (group,) = gather([str(run), f"{run}/", str(run / ".." / run.name)])
        self.assertEqual(group.runs, [run])
        with tempfile.TemporaryDirectory() as other:
            second = another_seed(Path(other) / "second")
            (group,) = gather([str(run), str(second), f"{run}/"])
            self.assertEqual(group.runs, [run, second])  # in the order in which they came first

    def test_a_game_that_is_played_twice_counts_once(self):
        with tempfile.TemporaryDirectory() as other:
            run = another_seed(Path(other) / "run")
            games = ["1200,0,False,7,0,10,10", "1200,0,False,7,1,20,20"]
            cut = ["1200,0,False,7,0,5,5,5"]
            lines = ["step,epsilon,sample,seed,episode,return,length,max_steps"]
            lines += [f"{game}," for game in games + games] + cut
            (run / "evaluation.csv").write_text("\n".join(lines) + "\n")
            whole, cut = evaluations(gather([str(run)]))
        self.assertEqual((whole["games"], whole["mean"]), (2, 15))
        self.assertEqual((cut["games"], shown_way(cut["how"])), (1, "max_steps 5"))

    def test_a_killed_run_does_not_stand_for_its_kind(self):
        run = cartpole_run()
        with tempfile.TemporaryDirectory() as other:
            killed = another_seed(Path(other) / "killed")
            lines = (killed / "log.csv").read_text().splitlines()
            (killed / "log.csv").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
            both = gather([str(run), str(killed)])
            rows = curve_rows(both)
            alone = curve_rows(gather([str(run)]))
            self.assertEqual(rows, alone)
            self.assertEqual(len(finished_logs(both[0])), 1)
            self.assertEqual(len(finished_logs(gather([str(killed)])[0])), 1)  # there is no other

    def test_of_runs_that_have_nothing_in_common_the_longest_are_drawn(self):
        late = dict(step=np.array([10.0, 20]), mean_return=np.array([np.nan, 3]))
        short = dict(step=np.array([10.0]), mean_return=np.array([1.0]))
        steps, values = on_common_steps([late, short], "step")
        self.assertEqual((steps[0], values.shape), (20, (1, 200)))

    def test_a_run_that_reached_its_score_is_finished(self):
        log = dict(step=np.array([10.0]), evaluation=np.array([480.0]))
        settings = dict(algorithm="dqn", dqn=dict(total_steps=99), stop_at_score=475.0)
        self.assertEqual(state_of(None, settings, log), "finished at its score, 10 steps")

    def test_searches_of_the_newest_checkpoint_are_drawn(self):
        old = dict(run="a", step=1, how=dict(simulations="4"), mean=1.0, low=1.0, high=1.0)
        rows = search_rows([old, dict(old, step=2, mean=2.0)])
        self.assertEqual([row["mean"] for row in rows], [2.0])

    def test_evaluations_by_how_they_were_played(self):
        found = evaluations(gather([str(cartpole_run())]))
        self.assertEqual([(each["games"], each["step"]) for each in found], [(6, 1200)])
        self.assertEqual(shown_way(found[0]["how"]), "greedy")
        self.assertLessEqual(found[0]["low"], found[0]["mean"])
        self.assertEqual(shown_way(dict(epsilon="0.05", sample="False")), "epsilon 0.05")


if __name__ == "__main__":
    unittest.main()
