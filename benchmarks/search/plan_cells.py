"""Whether the plan is written in the cells: a linear probe for the pushes to come."""

import numpy as np
from plan_sample import interval, ranks

LATEST = 6  # pushes that are told one by one


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
