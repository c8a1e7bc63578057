"""What a network says after each block: against searches of each depth, and when it stays."""

import numpy as np
from plan_sample import interval, ranks, within

from tfdqt.puzzles.puzzle import optimal_q

BINS = ((1, 2), (3, 4), (5, 8), (9, 16), (17, 99))  # of distances
DEPTHS = (*range(1, 17), 20, 99)  # sweeps of value iteration; 99: until it has converged


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
# From which block on the move stays


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
