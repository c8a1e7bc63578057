"""A model of many actors and one learner, from what their parts cost on this machine."""

import heapq
from typing import NamedTuple

import numpy as np


class Costs(NamedTuple):
    """Seconds that a chunk of steps takes in each part of the model."""

    play: float  # an actor plays it
    send: float  # it passes the learner's inward link
    serve: float  # the learner takes it and updates as often as its steps ask for
    broadcast: float  # the learner hands weights over
    weights: float  # weights for all actors pass the learner's outward link
    steps: int  # environment steps in it
    every: float  # chunks between two broadcasts


def costs_of(parts, actors, *, chunk, link, per_node, broadcast_every, faster):
    """Costs from the measured `parts`; see `simulate`."""
    steps = chunk * parts["envs"]
    updates = steps * parts["updates_per_step"]
    handling = parts[f"take_{chunk}"] + parts[f"add_{chunk}"]
    nodes = -(-actors // per_node)
    return Costs(
        play=steps * parts["actor_4"],
        send=8 * parts[f"bytes_{chunk}"] / link,
        serve=handling + updates * parts["update"] / faster,
        broadcast=parts["broadcast"],
        weights=8 * parts["weights_bytes"] * nodes / link,
        steps=steps,
        every=broadcast_every / updates,
    )


def simulate(
    parts,
    actors,
    *,
    chunk=4,
    link=1e9,
    per_node=16,
    broadcast_every=64,
    faster=1.0,
    chunks=4_000,
    ahead=2,
):
    """Steps per second, and how busy each part is, of actors that each have a core: a dict.

    An actor plays a chunk of its environments whenever fewer than `ahead` of its chunks are under
    way. Chunks pass the learner's inward link one after the other, then the learner. Weights pass
    its outward link; a chunk asked for after a broadcast is played when its weights have passed.
    Playing varies by a tenth.

    Args:
      parts: what each part costs alone, as `measure_parts` of scale.py gives it.
      actors: their number.
      chunk: steps of each environment in a chunk.
      link: bits per second into the learner's machine, and as many out of it.
      per_node: actors on a machine, which share the weights that reach it.
      broadcast_every: updates between two broadcasts of the weights.
      faster: how many times faster the learner's updates are than measured.
      chunks: how many are learned from; the first quarter is not counted.
    """
    costs = costs_of(
        parts,
        actors,
        chunk=chunk,
        link=link,
        per_node=per_node,
        broadcast_every=broadcast_every,
        faster=faster,
    )
    rng = np.random.default_rng(0)
    played = np.zeros(actors)  # when each actor will have played what it was asked for
    events = []  # (time, whether the chunk is learned from or only played, actor)
    free = dict(inward=0.0, learner=0.0, outward=costs.weights)  # when each part will be free
    busy = dict.fromkeys(free, 0.0)

    def ask(actor, now):
        """Ask an actor for a chunk."""
        begin = max(played[actor], now, free["outward"])
        played[actor] = begin + costs.play * rng.uniform(0.9, 1.1)
        heapq.heappush(events, (played[actor], 0, actor))

    def use(part, now, seconds):
        """Keep a part busy: -> when it is free again."""
        free[part] = max(free[part], now) + seconds
        busy[part] += seconds
        return free[part]

    for actor in range(actors):
        for _ in range(ahead):
            ask(actor, 0.0)
    done = 0
    due = costs.every  # chunks until the next broadcast
    while done < chunks:
        now, learned, actor = heapq.heappop(events)
        if not learned:
            arrived = use("inward", now, costs.send)
            heapq.heappush(events, (use("learner", arrived, costs.serve), 1, actor))
            continue
        done += 1
        due -= 1
        if due <= 0:
            use("outward", now, costs.weights)
            use("learner", now, costs.broadcast)
            due += costs.every
        if done == chunks // 4:
            begin = now
            before = dict(busy)
        ask(actor, now)
    seconds = now - begin
    rate = costs.steps * (done - chunks // 4) / seconds
    shares = dict(actors_busy=rate * costs.play / costs.steps / actors)
    shares |= {f"{part}_busy": (busy[part] - before[part]) / seconds for part in busy}
    return dict(
        actors=actors,
        chunk=chunk,
        faster=faster,
        broadcast_every=broadcast_every,
        steps_per_second=float(rate),
        **{part: float(min(1.0, share)) for part, share in shares.items()},
    )
