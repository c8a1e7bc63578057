"""Is a network that plays Sokoban a search? It is read, and changed, after each of its blocks.

    python benchmarks/search/plan.py --weights=runs/search --out=runs/search/plan

Looks at networks of regress.py for levels with one box. Writes of every network and block k (or
loop k), on levels of the set "test":

- reading.csv: Q read after k, by the network's own head and by a linear one: the share of optimal
  moves and the variance explained, by the exact distance of the state.
- agreement.csv, depth.csv: how that Q agrees with value iteration from zero after d sweeps; the d
  that it agrees with best; and how far from the solution its moves are still half as good as
  perfect ones.
- gain.csv: by which k nine tenths of what is gained over random moves are gained, by distance.
- settle.csv, order.csv: from which k on the chosen move stays the optimal one, or the one of the
  end, and the plan that is read stays the right one; by distance, and the rank correlation of both.
- probe.csv, turn.csv: whether the plan is written in the cells: a linear probe for the direction
  in which the box will be pushed off each cell.
- change.csv: how often the network follows when that plan is changed by hand after k.

Rows of networks that are there already are kept, and those networks left out.
Intervals are 95% of a bootstrap over layouts. Linear maps are fitted on levels of the set "tune".
Controls: untrained networks, whose blocks add little as yet; trained ones with the weights of every
array shuffled, whose blocks add as much as theirs; for the probe also the board itself.
"""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from arms import arm, build_arm
from measure import load_arm
from plan_plots import plot, read
from plan_states import draw_states

from tfdqt.backend import keras, set_threads, tf
from tfdqt.errors import UsageError
from tfdqt.puzzles.puzzle import optimal_q
from tfdqt.runs.log import write_rows

BINS = ((1, 2), (3, 4), (5, 8), (9, 16), (17, 99))  # of distances
DEPTHS = (*range(1, 17), 20, 99)  # sweeps of value iteration; 99: until it has converged
WAYS = ("probe", "third", "random")
DETOURS = (("0", 0, 0), ("2", 2, 2), ("4-8", 4, 8), ("0-8", 0, 8))
LATEST = 6  # pushes that are told one by one


@dataclasses.dataclass(frozen=True)
class Args:
    """Read and change networks between their blocks."""

    weights: str = "runs/search"
    """Folder with the weights that regress.py wrote."""
    out: str = "runs/search/plan"
    """Folder of what is written."""
    arms: tuple[str, ...] = ("loops-8", "blocks-8")
    """Networks, see arms.py: decoders."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Which of the networks of an arm."""
    controls: tuple[Literal["shuffled", "untrained"], ...] = ("shuffled", "untrained")
    """Kinds of networks of the same arms to compare with."""
    fitted: int = 1_200
    """States that linear maps are fitted on."""
    states: int = 2_000
    """States that are reported on."""
    changed: int = 150
    """States in which the plan is changed, at most."""
    scales: tuple[float, ...] = (2.0,)
    """How large a change is, in sizes of what stands there."""
    draws: int = 500
    """Draws of a bootstrap."""


# -------------------------------------------------------------------------------------------------
# Statistics


class Resample:
    """A bootstrap over layouts: which states are of the same, layout [N] int."""

    def __init__(self, layout, draws):
        self.group = np.unique(layout, return_inverse=True)[1]
        self.count = self.group.max() + 1
        chance = np.full(self.count, 1 / self.count)
        self.times = np.random.default_rng(0).multinomial(self.count, chance, size=draws)

    def sums(self, values):
        """Sums over states, [1 + draws, ...], of values [N, ...]: as they are, then resampled."""
        values = np.asarray(values, np.float64)
        by_layout = np.zeros((self.count, *values.shape[1:]))
        np.add.at(by_layout, self.group, values)
        weights = np.concatenate([np.ones((1, self.count)), self.times])
        return np.tensordot(weights, by_layout, 1)

    def mean(self, values, among=None):
        """(mean, low, high) of values [N] of the states that are `among`, [N] bool."""
        among = np.ones(len(values), bool) if among is None else among
        with np.errstate(invalid="ignore"):
            return interval(self.sums(np.where(among, values, 0)) / self.sums(among))

    def correlation(self, x, y, weight=None):
        """Correlations [1 + draws, ...] of x and y [N, M, ...], over states and M."""
        weight = np.ones(x.shape) if weight is None else weight
        terms = (weight, weight * x, weight * y, weight * x * x, weight * y * y, weight * x * y)
        n, sx, sy, sxx, syy, sxy = (self.sums(term.sum(1)) for term in terms)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = (sxx - sx**2 / n) * (syy - sy**2 / n)
            return (sxy - sx * sy / n) / np.sqrt(spread)


def interval(draws):
    """(value, low, high) of a statistic [1 + draws], of which the first is of the data itself."""
    if np.isnan(draws[0]):
        return (np.nan,) * 3
    low, high = np.nanquantile(draws[1:], (0.025, 0.975))
    return float(draws[0]), float(low), float(high)


def ranks(values):
    """Ranks [N] of values [N], the mean of ties."""
    from scipy.stats import rankdata

    return rankdata(values)


def within(values, strata):
    """Values [N] less the mean of their stratum, strata [N] int."""
    group = np.unique(strata, return_inverse=True)[1]
    mean = np.bincount(group, values) / np.bincount(group)
    return values - mean[group]


# -------------------------------------------------------------------------------------------------
# 1. The reading after each block, and searches of each depth


def truth(states, discount):
    """Exact values [N, 4] of the moves, 0 of illegal ones."""
    return np.where(states.legal, optimal_q(states.next_distance, discount), 0.0)


def swept(states, discount, depth):
    """Values [N, 4] of value iteration from zero after `depth` sweeps."""
    return np.where(states.next_distance < depth, truth(states, discount), 0.0)


def advantages(q, legal):
    """Values [N, 4] less their mean over legal moves; 0 of illegal ones."""
    mean = np.where(legal, q, 0).sum(1) / legal.sum(1)
    return np.where(legal, q - mean[:, None], 0.0)


def greedy(q, legal):
    """The best legal moves, [N] int."""
    return np.where(legal, q, -np.inf).argmax(1)


def optimal_moves(states):
    """Which moves are optimal, [N, 4] bool."""
    return states.legal & (states.next_distance == states.distance[:, None] - 1)


def linear_q(x, q, legal, ridge=1e-3):
    """A ridge regression of the values of moves: x [N, D], q, legal [N, 4] -> a function of x."""
    centre = x.mean(0)
    scale = x.std(0) + 1e-6

    def features(x):
        return np.concatenate([(x - centre) / scale, np.ones((len(x), 1))], 1)

    z = features(x)
    maps = []
    for move in range(q.shape[1]):
        rows = z[legal[:, move]]
        gram = rows.T @ rows + ridge * len(rows) * np.eye(z.shape[1])
        maps.append(np.linalg.solve(gram, rows.T @ q[legal[:, move], move]))
    return lambda x: features(x) @ np.stack(maps, 1)


def reading_rows(states, q, sample, discount):
    """How values [N, 4] agree with the exact ones, by the distance of the state."""
    exact = truth(states, discount)
    best = optimal_moves(states)
    right = best[np.arange(len(q)), greedy(q, states.legal)]
    chance = best.sum(1) / states.legal.sum(1)
    rows = []
    for low, high in (*BINS, (1, 99)):
        among = (states.distance >= low) & (states.distance <= high)
        share, least, most = sample.mean(right, among)
        part = states.of(among)
        rows.append(
            dict(
                distance=f"{low}-{high}" if high < 99 else f"{low}+",
                states=int(among.sum()),
                optimal=share,
                low=least,
                high=most,
                chance=chance[among].mean(),
                r2=explained(q[among], exact[among], part.legal),
                r2_advantage=explained(
                    advantages(q[among], part.legal),
                    advantages(exact[among], part.legal),
                    part.legal,
                ),
            )
        )
    return rows


def gain_rows(reading, part=0.9):
    """By which block most of what is gained over chance is gained: rows of gain.csv.

    reading: rows of reading.csv of one network. k is the first block from which on the share of
    optimal moves is over chance by `part` of what it is at the end.
    """
    rows = []
    for by, distance in dict.fromkeys((row["by"], row["distance"]) for row in reading):
        chosen = [row for row in reading if (row["by"], row["distance"]) == (by, distance)]
        over = np.array([row["optimal"] - row["chance"] for row in chosen])  # k in its order
        k = first_lasting(over[None] >= part * over[-1])[0]
        rows.append(dict(by=by, distance=distance, gained=over[-1], k=int(k)))
    return rows


def explained(q, exact, legal):
    """The share of the variance of exact values [N, 4] of legal moves that q explains."""
    spread = (exact[legal] - exact[legal].mean()) ** 2
    return 1 - ((q - exact)[legal] ** 2).sum() / max(spread.sum(), 1e-12)


def agreements(states, q, sample, discount):
    """Correlations of values [N, 4] with those after each number of sweeps.

    Returns two arrays [1 + draws, depths]: of the values, and of the advantages, which count the
    more the less a state is worth, as in learning.
    """
    legal = states.legal.astype(float)[..., None]
    size = (truth(states, discount).max(1) + 0.1)[:, None]
    each = np.stack([swept(states, discount, depth) for depth in DEPTHS], -1)
    ours = np.repeat(q[..., None], len(DEPTHS), -1)
    values = sample.correlation(ours, each, np.broadcast_to(legal, each.shape))
    aims = np.stack([advantages(each[..., i], states.legal) / size for i in range(len(DEPTHS))], -1)
    ours = np.repeat((advantages(q, states.legal) / size)[..., None], len(DEPTHS), -1)
    return values, sample.correlation(ours, aims, np.broadcast_to(legal, aims.shape))


def best_depth(correlations):
    """(depth, low, high) that agrees best, of correlations [1 + draws, depths]."""
    if np.isnan(correlations[0]).all():
        return (np.nan,) * 3
    return interval(np.array(DEPTHS, float)[np.nan_to_num(correlations, nan=-2).argmax(1)])


def reach(right, chance, distance, sample):
    """(distance, low, high) from which on moves are less than half as good as perfect ones.

    right [N] bool, chance [N] of a random legal move, distance [N]. Half as good: the share of
    optimal moves is half way between chance and 1. It is looked for from near to far, in steps of
    two moves, and is 25 if it never comes to that.
    """
    step = (distance.astype(int) + 1) // 2  # 1-2, 3-4, ...
    hot = step[:, None] == np.arange(1, 13)
    with np.errstate(invalid="ignore"):
        good = sample.sums(hot * (right - chance)[:, None]) / sample.sums(
            hot * (1 - chance)[:, None]
        )
    bad = np.nan_to_num(good, nan=1.0) < 0.5
    return interval(np.where(bad.any(1), 2.0 * bad.argmax(1) + 1, 25.0))


def read_q(net, states, sample, fitted, discount):
    """Rows of reading.csv, agreement.csv and depth.csv of one network; see `look`."""
    reading = []
    agreement = []
    depth = []
    best = optimal_moves(states)
    chance = best.sum(1) / states.legal.sum(1)
    for k in range(net.blocks + 1):
        probe = linear_q(fitted.value[:, k], truth(fitted.states, discount), fitted.states.legal)
        for by, q in (("head", net.q[:, k]), ("probe", probe(net.value[:, k]))):
            known = dict(k=k, by=by)
            reading += [dict(known, **row) for row in reading_rows(states, q, sample, discount)]
            values, advantage = agreements(states, q, sample, discount)
            agreement += [
                dict(known, depth=d, values=values[0, i], advantages=advantage[0, i])
                for i, d in enumerate(DEPTHS)
            ]
            right = best[np.arange(len(q)), greedy(q, states.legal)]
            row = dict(known)
            found = dict(
                values=best_depth(values),
                advantages=best_depth(advantage),
                reach=reach(right, chance, states.distance, sample),
            )
            for name, three in found.items():
                row.update(zip((name, f"{name}_low", f"{name}_high"), three))
            depth.append(row)
    gain = gain_rows(reading)
    return dict(reading=reading, gain=gain, agreement=agreement, depth=depth)


# -------------------------------------------------------------------------------------------------
# 2. From which block on the move stays


def first_lasting(good):
    """The first k from which on all are true: good [N, K + 1] bool -> [N], K + 1 if not even K."""
    return good.shape[1] - np.cumprod(good[:, ::-1], axis=1).sum(1)


def move_ways(states, q):
    """What may stay from a block on, for `settle_rows`: q [N, K + 1, 4] read after every block."""
    moves = np.stack([greedy(q[:, k], states.legal) for k in range(q.shape[1])], 1)
    best = optimal_moves(states)
    chance = states.legal.sum(1) * 5 + best.sum(1)
    return dict(
        optimal=(np.take_along_axis(best, moves, 1), best.sum(1) == 1, chance),
        same=(moves == moves[:, -1:], best.sum(1) == 1, chance),
    )


def settle_rows(states, ways, sample):
    """Rows of settle.csv and order.csv: from which block on something stays, by the distance.

    ways: name -> (good [N, K + 1] bool, clear [N] bool, states that are told once more by
    themselves, and chance [N] int, states alike in how likely it is good by chance). Counted are
    states in which it is good at the end. The rank correlation of block and distance is within
    states of the same chance.
    """
    settle = []
    order = []
    for stays, (good, clear, chance) in ways.items():
        first = first_lasting(good)
        among = good[:, -1]
        for distance in range(1, 25):
            there = among & (states.distance == distance)
            if there.sum() < 10:
                continue
            mean, low, high = sample.mean(first, there)
            settle.append(
                dict(stays=stays, distance=distance, states=there.sum(), k=mean, low=low, high=high)
            )
        for name, part in (("all", among), ("clear", among & clear)):
            x = np.zeros(len(first))
            y = np.zeros(len(first))
            x[part] = within(ranks(first[part]), chance[part])
            y[part] = within(ranks(states.distance[part]), chance[part])
            found = sample.correlation(x[:, None], y[:, None], part[:, None].astype(float))
            value, low, high = interval(found)
            order.append(
                dict(stays=stays, among=name, states=part.sum(), rank=value, low=low, high=high)
            )
    return dict(settle=settle, order=order)


# -------------------------------------------------------------------------------------------------
# 3. Whether the plan is written in the cells


def logistic(x, y, classes, decay=1e-4):
    """Multinomial logistic regression: x [N, D], y [N] int -> (kernel [D, classes], bias)."""
    from scipy.optimize import minimize

    centre = x.mean(0)
    scale = x.std(0) + 1e-6
    z = np.concatenate([(x - centre) / scale, np.ones((len(x), 1))], 1).astype("float32")
    hot = np.eye(classes, dtype="float32")[y]

    def loss(flat):
        kernel = flat.reshape(z.shape[1], classes).astype("float32")
        logits = z @ kernel
        logits -= logits.max(1, keepdims=True)
        chance = np.exp(logits)
        total = chance.sum(1, keepdims=True)
        chance /= total
        error = float(np.log(total).sum() - (logits * hot).sum()) / len(z)
        error += 0.5 * decay * float((kernel**2).sum())
        gradient = z.T @ (chance - hot) / len(z) + decay * kernel
        return error, gradient.reshape(-1).astype(np.float64)

    start = np.zeros(z.shape[1] * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=dict(maxiter=60)).x
    kernel = found.reshape(z.shape[1], classes)
    weights = kernel[:-1] / scale[:, None]
    return weights, kernel[-1] - centre @ weights


def f1_of(said, label, sample, among):
    """Mean F1 of the four directions, (value, low, high): said, label, among [N, C]."""
    scores = []
    for direction in range(1, 5):
        hit = sample.sums((among & (said == direction) & (label == direction)).sum(1))
        told = sample.sums((among & (said == direction)).sum(1))
        there = sample.sums((among & (label == direction)).sum(1))
        scores.append(2 * hit / np.maximum(told + there, 1))
    return interval(np.mean(scores, 0))


def area(score, label):
    """The area under the ROC curve: score [N], label [N] bool."""
    count = label.sum()
    low = count * (count + 1) / 2
    return (ranks(score)[label].sum() - low) / (count * (len(label) - count))


def probe_rows(states, logits, sample):
    """Rows of probe.csv and turn.csv: logits [N, C, 5] of what is pushed off each cell."""
    shape = states.plan.shape
    floor = states.obs.reshape(shape) != 1
    here = np.arange(shape[1]) == states.box[:, None]
    said = logits.argmax(-1)
    later = floor & ~here
    rows = []
    for name, among in (("all", np.ones(len(said), bool)), ("unique", states.unique)):
        among = among[:, None]
        row = dict(states=name)
        first = said[here] == states.plan[here]
        four = 1 + logits[here][:, 1:].argmax(-1) == states.plan[here]
        found = dict(
            f1=f1_of(said, states.plan, sample, floor & among),
            f1_later=f1_of(said, states.plan, sample, later & among),
            next_push=sample.mean(four, among[:, 0]),
        )
        for key, three in found.items():
            row.update(zip((key, f"{key}_low", f"{key}_high"), three))
        part = later & among
        pushed = logits[..., 1:].max(-1) - logits[..., 0]
        row["auc_later"] = area(pushed[part], states.plan[part] > 0)
        row["next_push_told"] = first[among[:, 0]].mean()
        rows.append(row)
    turns = []
    last = states.turn.max(1)
    for number in range(1, LATEST + 1):
        ways = dict(
            start=states.turn == number,
            end=(states.turn > 0) & (last[:, None] - states.turn + 1 == number),
        )
        for way, which in ways.items():
            long = last >= 4  # the same states for every number, as far as they go
            which = which & long[:, None] & states.unique[:, None]
            hit = (which & (said == states.plan)).any(1)
            share, low, high = sample.mean(hit, which.any(1))
            turns.append(
                dict(
                    counted_from=way,
                    push=number,
                    states=which.any(1).sum(),
                    recall=share,
                    low=low,
                    high=high,
                )
            )
    return rows, turns


def fit_plan(x, states):
    """The probe of cells x [N, C, D] for the plans of states: (kernel [D, 5], bias [5])."""
    floor = states.obs.reshape(states.plan.shape) != 1
    return logistic(x[floor], states.plan[floor], 5)


def read_plan(net, states, sample, fitted):
    """Whether one network has the plan in its cells.

    Returns (rows of probe.csv and turn.csv, the probes after every block, ways for `settle_rows`).
    """
    probe = []
    turn = []
    maps = []
    pushes = []
    plans = []
    here = np.arange(states.plan.shape[1]) == states.box[:, None]
    for k in range(net.blocks + 1):
        kernel, bias = fit_plan(fitted.cells[:, k], fitted.states)
        maps.append((kernel, bias))
        logits = net.cells[:, k] @ kernel + bias
        pushes.append(1 + logits[here][:, 1:].argmax(-1) == states.plan[here])
        plans.append(((states.plan == logits.argmax(-1)) | (states.plan == 0)).all(1))
        rows, turns = probe_rows(states, logits, sample)
        probe += [dict(k=k, **row) for row in rows]
        turn += [dict(k=k, **row) for row in turns]
    alike = np.zeros(len(here), int)
    ways = {
        "next push": (np.stack(pushes, 1), states.unique, alike),
        "all pushes": (np.stack(plans, 1), states.unique, alike),
    }
    return dict(probe=probe, turn=turn), maps, ways


def read_board(states, sample, fitted):
    """Rows of probe.csv and turn.csv of linear probes that see the whole board, one a cell."""

    def board(states):
        return (states.obs.reshape(len(states.obs), -1, 1) == np.arange(7)).reshape(
            len(states.obs), -1
        )

    x = board(fitted)
    seen = board(states)
    logits = []
    for cell in range(fitted.plan.shape[1]):
        kernel, bias = logistic(x.astype("float32"), fitted.plan[:, cell], 5, decay=1e-2)
        logits.append(seen @ kernel + bias)
    rows, turns = probe_rows(states, np.stack(logits, 1), sample)
    return dict(probe=[dict(k=0, **row) for row in rows], turn=[dict(k=0, **row) for row in turns])


# -------------------------------------------------------------------------------------------------
# 4. The plan changed by hand


def to_change(states, q, most):
    """States in which another first push could be chosen than the one that the network is up to.

    q: [N, 4] of the network. Its move must be an optimal one on the shortest way to a push, and on
    no shortest way to the other; the other's detour is of 8 moves at most.
    Returns (rows [M], the other's direction [M], its detour in moves [M]).
    """
    move = greedy(q, states.legal)
    everyone = np.arange(len(q))
    leads = states.moves[everyone, :, move]  # [N, direction]
    optimal = states.cost == states.distance[:, None]
    ours = (leads & optimal).any(1)
    other = np.where(leads, np.inf, states.cost)
    detour = other.min(1) - states.distance
    rows = np.flatnonzero(ours & (detour <= 8))[:most]
    return rows, other[rows].argmin(1), detour[rows]


def third(plan, changed):
    """Plans [M, C] that push in a third direction where `changed` pushes in another than `plan`."""
    options = np.arange(1, 4)  # of three directions one is in neither
    free = (plan[..., None] != options) & (changed[..., None] != options)
    return np.where(changed > 0, options[free.argmax(-1)], 0)


def edits(x, kernel, plan, changed, where, scale, way):
    """What is added to cells x [M, C, D] to change the plan: [M, C, D].

    kernel: [D, 5] of the probe; plan and changed: [M, C]; where: [M, C] bool, which cells are
    changed. way: "probe", the direction from the old class to the new one; "third", to a push in a
    third direction instead; "random". Its size is `scale` times the mean size of x over the cells
    that are changed.
    """
    where = where & (plan != changed)
    aim = third(plan, changed) if way == "third" else changed
    towards = kernel.T[aim] - kernel.T[plan]
    if way == "random":
        towards = np.random.default_rng(5).normal(size=towards.shape)
    size = np.linalg.norm(towards, axis=-1, keepdims=True)
    usual = np.linalg.norm(x, axis=-1)[where].mean()
    return np.where(where[..., None], scale * usual * towards / np.maximum(size, 1e-9), 0.0)


def change_rows(net, states, maps, args):
    """Rows of change.csv of one network."""
    rows, other, detour = to_change(states, net.q[:, -1], args.changed)
    part = states.of(rows)
    index = np.arange(len(rows))
    before = greedy(net.q[rows, -1], part.legal)
    leads = part.moves[index, :, before] & (part.cost == part.distance[:, None])
    plans = (part.changed[index, leads.argmax(1)], part.changed[index, other])
    box = np.arange(part.plan.shape[1]) == part.box[:, None]
    sample = Resample(part.layout, args.draws)

    def count(known, q, cells):
        after = greedy(q, part.legal)
        told = _told(cells @ maps[-1][0] + maps[-1][1], plans, box)
        follows = part.moves[index, other, after]
        return _changes(known, follows, after == before, told, detour, sample)

    known = dict(k=net.blocks, scale=0.0, cells="none", direction="none")
    found = count(known, net.q[rows, -1], net.cells[rows, -1])
    everywhere = np.ones(box.shape, bool)
    for k in range(1, net.blocks):
        run = net.editor(k)
        for scale, (cells, where), way in itertools.product(
            args.scales, (("next push", box), ("whole plan", everywhere)), WAYS
        ):
            edit = edits(net.cells[rows, k], maps[k][0], *plans, where, scale, way)
            known = dict(k=k, scale=scale, cells=cells, direction=way)
            found += count(known, *run(part, edit))
    return found


def _told(logits, plans, box):
    """Whether the later pushes that are in one plan alone are read: two of (hits, pushes), [M]."""
    said = logits.argmax(-1)
    found = []
    for plan, than in (plans, plans[::-1]):
        only = (plan > 0) & (plan != than) & ~box
        found.append(((only & (said == plan)).sum(1), only.sum(1)))
    return found


def _changes(known, follows, keeps, told, detour, sample):
    rows = []
    for name, least, most in DETOURS:
        among = (detour >= least) & (detour <= most)
        if among.sum() < 10:
            continue
        share, low, high = sample.mean(follows, among)
        old, new = (hits[among].sum() / pushes[among].sum() for hits, pushes in told)
        rows.append(
            dict(
                known,
                detour=name,
                states=among.sum(),
                follows=share,
                low=low,
                high=high,
                keeps=keeps[among].mean(),
                old_pushes_read=old,
                new_pushes_read=new,
            )
        )
    return rows


# -------------------------------------------------------------------------------------------------
# Networks


class Look:
    """What a network makes of states.

    q: [N, K + 1, 4], read by its head after every block, the tokens first; value: [N, K + 1, D],
    the token that the head reads; cells: [N, K + 1, C, D]; blocks: K.
    """

    def __init__(self, model, info, cfg, states):
        self.build = lambda edited=None: _stream(model, info, cfg, edited)
        self.states = states
        whole = self.build()
        run = tf.function(whole, reduce_retracing=True)
        stream = np.concatenate([run(part)["stream"].numpy() for part in _batches(states)])
        self.blocks = stream.shape[1] - 1
        self.cells = stream[:, :, :-1]
        self.value = stream[:, :, -1]
        normed = whole.get_layer("norm")(self.value)
        self.q = whole.get_layer("q")(normed).numpy()

    def editor(self, k):
        """A function of states and an edit [M, C, D] after block k.

        It returns the values [M, 4], and the cells [M, C, D] after the last block.
        """
        whole = tf.function(self.build(k), reduce_retracing=True)

        def run(states, edit):
            padded = np.pad(edit, ((0, 0), (0, 1), (0, 0))).astype("float32")
            begin = 0
            q = []
            cells = []
            for part in _batches(states):
                count = len(part["obs"])
                part["edit"] = padded[begin : begin + count]
                begin += count
                out = whole(part)
                q.append(out["q"].numpy()[:, 0, :, 0])
                cells.append(out["stream"].numpy()[:, -1, :-1])
            return np.concatenate(q), np.concatenate(cells)

        return run


def _stream(model, info, cfg, edited):
    from tfdqt.games.networks import build_stream  # loads Keras

    return build_stream(model, info, cfg, edited)


def _batches(states, size=500):
    """The inputs of a network, `size` states at a time."""
    rows = [states.obs.reshape(len(states.obs), -1), states.legal.astype(np.uint8)]
    obs = np.concatenate(rows, 1)[:, None]
    first = np.ones((len(obs), 1), np.int32)
    for begin in range(0, len(obs), size):
        yield dict(obs=obs[begin : begin + size], first=first[begin : begin + size])


def trained(args, name, seed):
    """A network of regress.py: (keras.Model, EnvInfo, settings)."""
    from tfdqt.games.flat import set_weights  # loads TensorFlow

    net, weights, info, settings = load_arm(args.weights, name, seed)
    set_weights(net, weights)
    return net.model, info, settings


def look_at(args, model, info, name, parts):
    """What a network makes of the states to report on and of those to fit on."""
    return [Look(model, info, arm(name), states) for states in parts]


def read_network(args, name, seed, who, parts, sample, discount):
    """Everything that is told of one network: dict of rows by file."""
    model, info, _ = trained(args, name, seed)
    if who == "untrained":
        keras.utils.set_random_seed(100 + seed)
        model = build_arm(name, info)
    elif who == "shuffled":
        rng = np.random.default_rng(100 + seed)
        for variable in model.trainable_variables:
            weights = variable.numpy()
            variable.assign(rng.permutation(weights.reshape(-1)).reshape(weights.shape))
    net, fitted = look_at(args, model, info, name, parts)
    tables = read_q(net, parts[0], sample, fitted, discount)
    plans, maps, ways = read_plan(net, parts[0], sample, fitted)
    tables |= plans | settle_rows(parts[0], move_ways(parts[0], net.q) | ways, sample)
    if who == "trained" and net.blocks > 1:
        tables["change"] = change_rows(net, parts[0], maps, args)
    return tables


def check(args):
    """The settings of the networks; raises UsageError if they can't be read here."""
    for name in args.arms:
        if not (Path(args.weights) / f"{name}.npz").exists():
            raise UsageError(f"{args.weights} has no {name}.npz; train it with regress.py.")
        if name.startswith(("dense", "drc", "mean")):
            raise UsageError(f"{name} has no token to read after each block; take loops or blocks.")
    _, _, settings = trained(args, args.arms[0], args.seeds[0])
    if settings["boxes"] != 1:
        raise UsageError("Plans are told of levels with one box; give weights of --boxes=1.")
    return settings


def network_of(row):
    """Which network a row is of."""
    return row["arm"], row["who"], int(row["seed"])


def earlier(out):
    """Rows of earlier calls by file, of the networks that they were done with; and which those are.

    order.csv is written last.
    """
    tables = {path.stem: read(path) for path in sorted(out.glob("*.csv"))}
    done = {network_of(row) for row in tables.get("order", [])}
    kept = {file: [row for row in rows if network_of(row) in done] for file, rows in tables.items()}
    return kept, done


def add_rows(out, tables, network, found):
    """Add what was told of a network to the tables and their files."""
    known = dict(zip(("arm", "who", "seed"), network))
    for file in sorted(found, key=lambda file: file == "order"):
        tables.setdefault(file, []).extend(dict(known, **row) for row in found[file])
        write_rows(out / f"{file}.csv", tables[file])


def main(args):
    set_threads(1, 1)
    settings = check(args)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tables, done = earlier(out)
    drawn = dict(size=settings["size"], each=4)
    states = draw_states(11, args.states, split="test", **drawn)
    fitted = draw_states(12, args.fitted, split="tune", **drawn)
    sample = Resample(states.layout, args.draws)
    add_rows(out, tables, ("board", "control", 0), read_board(states, sample, fitted))
    kinds = ("trained", *args.controls)
    for who, name, seed in itertools.product(kinds, args.arms, args.seeds):
        if (name, who, seed) in done:
            continue
        found = read_network(args, name, seed, who, (states, fitted), sample, settings["discount"])
        add_rows(out, tables, (name, who, seed), found)
        print(f"{name} {who} {seed} after {time.perf_counter() - began:.0f} s", flush=True)
    plot(out)


if __name__ == "__main__":
    main(tyro.cli(Args))
