"""What a network does when the plan in its cells is changed by hand."""

import itertools

import numpy as np
from plan_reading import greedy
from plan_sample import Resample

WAYS = ("probe", "third", "random")
DETOURS = (("0", 0, 0), ("2", 2, 2), ("4-8", 4, 8), ("0-8", 0, 8))


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
