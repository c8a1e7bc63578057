"""What `regress.py` learns with on a GPU: all networks of an arm side by side, with JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from regress import MAX_NORM, loss_of, rate_after

from tfdqt.games.blocks import LoopLimit


def learn(args, model, starts, runs, data, report):
    """Train networks: -> their weights [runs, W]. As in `learn_tensorflow.py`."""
    weights = [jnp.stack(part) for part in zip(*starts)]
    rates = jnp.array([rate for rate, _ in runs])
    fixed = [jnp.asarray(variable) for variable in model.non_trainable_variables]
    limited = [layer for layer in model.layers if isinstance(layer, LoopLimit)]
    data = {key: jax.device_put(each) for key, each in data.items()}
    size = len(data["q"])

    def loss(weights, fixed, batch):
        q = _q(model, weights, fixed, batch["obs"])
        return loss_of(q, batch["q"], batch["legal"]).mean()

    adam = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.scale_by_adam(eps=1e-6))

    def update(run, state, key):
        weights, moments, count = state
        rows, loops = jax.random.split(key)
        chosen = jax.random.randint(rows, (args.batch,), 0, size)
        batch = {key: each[chosen] for key, each in data.items()}
        now = fixed
        if limited:
            drawn = jax.random.randint(loops, (), 1, limited[0].loops + 1).astype(jnp.float32)
            now = [drawn]
        error, gradient = jax.value_and_grad(loss)(weights, now, batch)
        step, moments = adam.update(gradient, moments)
        rate = rates[run] * rate_after(count, args.updates)
        weights = [one - rate * by for one, by in zip(weights, step)]
        return (weights, moments, count + 1), error

    @jax.jit
    def train(states, keys):
        def one_run(run, state, keys):
            return jax.lax.scan(functools.partial(update, run), state, keys)

        states, errors = jax.vmap(one_run)(jnp.arange(len(runs)), states, keys)
        return states, errors.mean(1)

    chunk = max(1, args.updates // 20)
    state = (weights, jax.vmap(adam.init)(weights), jnp.zeros(len(runs)))
    keys = jnp.stack([jax.random.key(10_000 + seed) for _, seed in runs])
    for done in range(0, args.updates, chunk):
        of_chunk = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, done), chunk))
        state, errors = train(state, of_chunk(keys))
        report(done + chunk, np.asarray(errors))
    parts = [*state[0], *(jnp.stack([each] * len(runs)) for each in fixed)]
    return np.concatenate([np.asarray(part).reshape(len(runs), -1) for part in parts], 1)


def _q(model, weights, fixed, obs):
    inputs = dict(obs=obs[:, None], first=jnp.ones((len(obs), 1), jnp.int32))
    return model.stateless_call(weights, fixed, inputs)[0][:, 0, :, 0]


def make_values(model):
    """Compile `values(weights [W], obs [n, F]) -> [n, A]` of the actions by a network."""
    variables = (*model.trainable_variables, *model.non_trainable_variables)
    ends = np.cumsum([int(np.prod(variable.shape)) for variable in variables])
    count = len(model.trainable_variables)

    @jax.jit
    def values(weights, obs):
        parts = [
            jnp.reshape(part, variable.shape)
            for part, variable in zip(jnp.split(weights, ends[:-1]), variables)
        ]
        return _q(model, parts[:count], parts[count:], obs)

    return values
