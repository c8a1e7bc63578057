"""What runs left behind, as plain data for the page."""

import collections
import dataclasses
import json
from pathlib import Path

import numpy as np

from tfdqt.errors import UsageError
from tfdqt.games.algorithms import ALGORITHMS, default_settings
from tfdqt.report.kinds import group_runs, settings_of, task_of
from tfdqt.runs.checkpoint import checkpoints
from tfdqt.runs.evaluation import read_games
from tfdqt.runs.folder import find_run
from tfdqt.runs.log import EVALUATION, log_so_far
from tfdqt.runs.plots import band
from tfdqt.stats import confidence, improvement, interquartile_mean
from tfdqt.text.tasks.table import default_text_config

POINTS = 200  # of a curve
# Columns of evaluation.csv that tell of a game, not of how games were played.
OF_A_GAME = ("episode", "return", "length", "evaluations", "ms_a_move", "distance", "seed")
BANDS = 8  # of the lengths of puzzles
# Of a log, that are no curve of learning.
NO_CURVES = ("epoch", "seconds", "step", "games", "samples", "updates")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    runs: list  # of folders
    names: list  # of each, what it is called: its folder's name, or all of its path
    settings: list  # of each, plain
    logs: list  # of each, None where there is none yet

    @property
    def game(self):
        """Whether it plays games, and does not learn from texts."""
        return self.settings[0]["algorithm"] in ALGORITHMS


def gather(run_dirs):
    """The Groups of runs, each of which counts once however often it is named."""
    named = {}
    for run in run_dirs:
        named.setdefault(find_run(run).resolve(), run)
    run_dirs = list(named.values())
    settings = {run: settings_of(run) for run in run_dirs}
    alone = collections.Counter(find_run(run).name for run in settings)
    groups = []
    for label, runs in group_runs(run_dirs, settings).items():
        folders = [find_run(run) for run in runs]
        names = [folder.name if alone[folder.name] == 1 else str(folder) for folder in folders]
        logs = [log_so_far(folder) for folder in folders]
        groups.append(Group(label, folders, names, [settings[run] for run in runs], logs))
    return groups


def changed_settings(settings):
    """The settings of a run that differ from the defaults: dict name -> (value, default)."""
    if settings["algorithm"] in ALGORITHMS:
        network, cfg = default_settings(settings["name"], settings["algorithm"])
        parts = dict(network=network)
        parts[settings["algorithm"]] = cfg
    else:
        method = settings["text"]["method"]
        _, network, cfg = default_text_config(settings["task"], method)
        parts = dict(network=network, text=cfg)
    changed = {}
    for part, default in parts.items():
        default = json.loads(json.dumps(dataclasses.asdict(default)))
        for name, value in json.loads(json.dumps(settings[part])).items():
            if name in default and value != default[name]:
                changed[name] = (value, default[name])
    for name, value in settings.get("env", {}).items():
        if value:
            changed[name] = (value, "")
    return changed


def state_of(folder, settings, log):
    """How far a run has come, in a few words."""
    if log is None:
        return "has no log yet"
    total = steps_asked(settings)
    step = int(log["step"][-1])
    if total is None:
        return f"{step:,} updates"
    if is_over(settings, log):
        return f"finished{' at its score' if step < total else ''}, {step:,} steps"
    kept = "" if checkpoints(folder) else "; it has no checkpoint"
    return f"unfinished: {step:,} of {total:,} steps{kept}"


def steps_asked(settings):
    """How many environment steps a run was to make; None of texts."""
    return settings.get(settings["algorithm"], {}).get("total_steps")


def is_over(settings, log):
    """Whether a run has made all of its steps, or --stop-at-score ended it; of texts it is not."""
    total = steps_asked(settings)
    if total is None:
        return False
    if log["step"][-1] >= total:
        return True
    score = settings.get("stop_at_score")
    if score is None or EVALUATION not in log:
        return False
    known = log[EVALUATION][np.isfinite(log[EVALUATION])]
    return bool(len(known)) and known[-1] >= score


def finished_logs(group):
    """The logs of a group's runs that are over, or of all if none is.

    One that was killed would cut the others' curves short, and count as a run that learned less.
    """
    logs = [
        (settings, log)
        for settings, log in zip(group.settings, group.logs)
        if log is not None and np.isfinite(log["mean_return"]).any()
    ]
    over = [log for settings, log in logs if is_over(settings, log)]
    return over or [log for _, log in logs]


def on_common_steps(logs, x):
    """`band` of mean returns, without runs that end before another has any: (at, values)."""
    logs = sorted(logs, key=lambda log: log[x][-1])
    while True:
        try:
            return band(logs, "mean_return", POINTS, x=x)
        except UsageError:
            logs = logs[1:]


# -------------------------------------------------------------------------------------------------
# Curves


def curve_rows(groups):
    """Rows of every group's mean return, over steps and over seconds: mean, lowest and highest."""
    rows = []
    for group in groups:
        logs = finished_logs(group)
        if not logs:
            continue
        for x in ("step", "seconds"):
            at, values = on_common_steps(logs, x)
            for i, place in enumerate(at):
                column = values[:, i]
                rows.append(
                    dict(
                        label=group.label,
                        over=x,
                        x=place,
                        mean=column.mean(),
                        low=column.min(),
                        high=column.max(),
                        seeds=len(values),
                    )
                )
    return rows


def column_rows(groups):
    """Rows of every other column of the logs: label, run, step, column, value."""
    rows = []
    for group in groups:
        for name, log in zip(group.names, group.logs):
            if log is None:
                continue
            some = np.unique(np.linspace(0, len(log["step"]) - 1, POINTS).astype(int))
            for column in log:
                if column in NO_CURVES or not np.isfinite(log[column]).any():
                    continue
                for i in some:
                    if np.isfinite(log[column][i]):
                        row = dict(label=group.label, run=name, column=column)
                        rows.append(row | dict(step=log["step"][i], value=log[column][i]))
    return rows


# -------------------------------------------------------------------------------------------------
# Evaluations


def evaluations(groups):
    """What evaluation.csv says, a dict for each way that the games of a run were played."""
    found = []
    for group in groups:
        for folder, name in zip(group.runs, group.names):
            ways = collections.defaultdict(dict)
            for row in read_games(Path(folder)):
                way = {key: value for key, value in row.items() if key not in OF_A_GAME and value}
                # Played again with the same seed it is the same game.
                ways[json.dumps(way)][row["seed"], row["episode"]] = row
            for way, games in ways.items():
                rows = list(games.values())
                returns = np.array([float(row["return"]) for row in rows])
                lengths = np.array([float(row["length"] or "nan") for row in rows])
                distances = [float(row.get("distance") or "nan") for row in rows]
                low, high = confidence(returns)
                way = json.loads(way)
                found.append(
                    dict(
                        label=group.label,
                        run=name,
                        step=int(way.pop("step")),
                        how=way,
                        games=len(rows),
                        mean=returns.mean(),
                        low=low,
                        high=high,
                        returns=returns.tolist(),
                        lengths=lengths.tolist(),
                        distances=distances,
                    )
                )
    return found


def shown_way(how):
    """How games were played, in a few words; what is as by default is left out."""
    usual = {"epsilon": "0", "sample": "False", "best_of": "1", "leaves": "1"}
    usual |= {"avoid_repeats": "False", "exploration": "1.25"}
    said = [f"{key} {value}" for key, value in how.items() if usual.get(key) != value]
    return ", ".join(said) or "greedy"


def search_rows(found):
    """Rows of evaluations with a search: label, run, how else, simulations, mean, low, high."""
    rows = []
    for each in searched_of(found):
        rest = {key: value for key, value in each["how"].items() if key != "simulations"}
        rows.append(
            dict(
                run=each["run"],
                how=shown_way(rest),
                simulations=int(each["how"]["simulations"]),
                mean=each["mean"],
                low=each["low"],
                high=each["high"],
            )
        )
    return rows


def searched_of(found):
    """The evaluations with a search, of the newest checkpoint of a run that has some."""
    searched = [each for each in found if each["how"].get("simulations")]
    newest = collections.defaultdict(int)
    for each in searched:
        newest[each["run"]] = max(newest[each["run"]], each["step"])
    return [each for each in searched if each["step"] == newest[each["run"]]]


def distance_rows(found):
    """Rows of searched puzzles by the length of their shortest solutions, in BANDS bands at most.

    Of each band the mean return, what it is from and up to, and the number of games.
    """
    searched = searched_of(found)
    known = np.array([distance for each in searched for distance in each["distances"]])
    known = known[np.isfinite(known)]
    if not len(known):
        return []
    wide = int(np.ceil((known.max() - known.min() + 1) / BANDS))
    rows = []
    for each in searched:
        bands = (np.array(each["distances"]) - known.min()) // wide
        for number in np.unique(bands[np.isfinite(bands)]):
            returns = np.array(each["returns"])[bands == number]
            low, high = confidence(returns)
            begin = int(known.min() + number * wide)
            span = f"{begin} to {begin + wide - 1}" if wide > 1 else str(begin)
            rows.append(
                dict(
                    run=each["run"],
                    how=shown_way(each["how"]),
                    order=begin,
                    span=span,
                    games=len(returns),
                    mean=returns.mean(),
                    low=low,
                    high=high,
                )
            )
    return rows


def comparisons(groups, found):
    """How groups of one task compare: rows of interquartile means, and of who beats whom.

    By the first way of evaluating that all of their runs have in common, by its newest games, or by
    the last mean return.
    """
    rows = []
    tasks = collections.defaultdict(list)
    for group in groups:
        tasks[task_of(group.settings[0])].append(group)
    for task, rivals in tasks.items():
        if len(rivals) < 2:
            continue
        by, scores = _common_scores(rivals, found)
        first = next((group for group in rivals if scores.get(group.label)), None)
        for group in rivals:
            values = scores.get(group.label)
            if not values:
                continue
            low, high = confidence(values, statistic=interquartile_mean)
            row = dict(task=task, by=by, label=group.label, runs=len(values), low=low, high=high)
            row["mean"] = float(interquartile_mean(np.array(values)))
            if group is not first:
                beats = improvement([(values, scores[first.label])])
                row.update(zip(("beats", "beats_low", "beats_high"), beats), other=first.label)
            rows.append(row)
    return rows


def _common_scores(rivals, found):
    """-> (by what, dict label -> a score of each run)."""
    runs = {name: group.label for group in rivals for name in group.names}
    ways = collections.defaultdict(dict)
    for each in sorted(found, key=lambda each: each["step"]):
        if each["run"] in runs:
            ways[shown_way(each["how"])][each["run"]] = each["mean"]
    scores = collections.defaultdict(list)
    for way, means in ways.items():
        if set(means) == set(runs):
            for run, mean in means.items():
                scores[runs[run]].append(mean)
            return f"mean return of evaluated games, {way}", scores
    for group in rivals:
        for log in finished_logs(group):
            known = log["mean_return"][np.isfinite(log["mean_return"])]
            scores[group.label].append(float(known[-1]))
    return "last mean return while training", scores
