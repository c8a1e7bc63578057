"""The maths of Q-learning and PPO on tensors. Knows no network, no buffer and no environment.

Shapes: B batch, P steps of a window, A actions, N quantiles of a return (1: its mean alone).

An action of several parts is one number, as `numpy.ravel_multi_index` makes it. With `parts`, the
number of values of each, A is their sum: a network has an output for every value of every part. The
value of an action is the sum of those of its parts (Sunehag et al., 2018), and so is the logarithm
of its probability.
"""

import math

from tfdqt.backend import tf
from tfdqt.value_scale import LINEAR

# The value, or the logit, of an action that is not legal: so low that it is never chosen, and
# finite, so that nothing multiplied by 0 or a probability of 0 becomes NaN.
ILLEGAL = -1e30

# -------------------------------------------------------------------------------------------------
# Values of states and actions


def split_actions(actions, parts):
    """The value of each part of actions: int [...] -> a list of int [...], one a part."""
    values = []
    for count in reversed(parts):
        values.append(actions % count)
        actions = actions // count
    return values[::-1]


def join_actions(values, parts):
    """What `split_actions` took apart."""
    actions = tf.zeros_like(values[0])
    for value, count in zip(values, parts):
        actions = actions * count + value
    return actions


def one_hot(actions, count, parts=(), dtype="float32"):
    """1 at the outputs of the actions taken, else 0: int [...] -> [..., A]; count: A."""
    if not parts:
        return tf.one_hot(actions, count, dtype=dtype)
    values = split_actions(actions, parts)
    return tf.concat([tf.one_hot(value, n, dtype=dtype) for value, n in zip(values, parts)], -1)


def best_actions(q, parts=()):
    """The actions of the greatest value: [..., A] -> int32 [...]."""
    if not parts:
        return tf.argmax(q, axis=-1, output_type=tf.int32)
    each = [tf.argmax(part, axis=-1, output_type=tf.int32) for part in tf.split(q, parts, axis=-1)]
    return join_actions(each, parts)


def best_values(q, parts=()):
    """The greatest value of an action: [..., A] -> [...]."""
    if not parts:
        return tf.reduce_max(q, axis=-1)
    return tf.add_n([tf.reduce_max(part, axis=-1) for part in tf.split(q, parts, axis=-1)])


def log_probabilities(logits, parts=()):
    """Logits as logarithms of probabilities, of each part by itself: [..., A] -> [..., A]."""
    if not parts:
        return tf.nn.log_softmax(logits)
    each = [tf.nn.log_softmax(part) for part in tf.split(logits, parts, axis=-1)]
    return tf.concat(each, axis=-1)


def select_actions(q, actions, parts=()):
    """Q of the actions taken: [..., A], [...] -> [...].

    >>> select_actions(tf.constant([[1.0, 2.0]]), tf.constant([1]))  # [2.0]
    """
    return tf.reduce_sum(q * one_hot(actions, q.shape[-1], parts, q.dtype), axis=-1)


def select_quantiles(q, actions, parts=()):
    """The quantiles of the actions taken: [..., A, N], [...] -> [..., N]."""
    taken = one_hot(actions, q.shape[-2], parts, q.dtype)
    return tf.reduce_sum(q * taken[..., None], axis=-2)


def bootstrap_values(q_target, q_online=None, parts=()):
    """The value of a state: [..., A] -> [...].

    With `q_online`, the online network chooses the action and the target network values it
    (double Q-learning, van Hasselt et al., 2016); without, the target network does both (Mnih et
    al., 2015).
    """
    if q_online is None:
        return best_values(q_target, parts)
    q_online.shape.assert_is_compatible_with(q_target.shape)
    return select_actions(q_target, best_actions(q_online, parts), parts)


def bootstrap_quantiles(q_target, q_online=None, parts=()):
    """As `bootstrap_values`, of quantiles; their means choose: [..., A, N] -> [..., N]."""
    chosen_by = tf.reduce_mean(q_target if q_online is None else q_online, axis=-1)
    return select_quantiles(q_target, best_actions(chosen_by, parts), parts)


def mask_implausible(q, logits, part):
    """Q without actions that the data hardly has: [..., A], [..., A] -> [..., A].

    Their Q is the least number there is. They are the actions less than `part` times as likely as
    the likeliest by `logits`, the cloned policy's, so that nothing is chosen for a value that was
    hardly tested (discrete BCQ; Fujimoto, Conti, Ghavamzadeh and Pineau, 2019, equation 11). With
    a part of 0 all actions stay.
    """
    if not part:
        return q
    least = tf.reduce_max(logits, axis=-1, keepdims=True) + math.log(part)
    return tf.where(logits >= least, q, q.dtype.min)


def widen_gap(targets, q, actions, part, parts=(), scale=LINEAR):
    """Advantage learning's targets: [..., N], values [..., A], [...] -> [..., N].

    They are lower by that `part` of the gap between the best action's value and its own (Bellemare
    et al., 2016). The gap is taken on the scale of values, and counts as at most 1, as Munchausen
    Q-learning clips its own (Vieillard et al., 2020).
    """
    best = scale.shrink(best_values(q, parts))
    gap = part * tf.minimum(best - scale.shrink(select_actions(q, actions, parts)), 1.0)
    return scale.stretch(scale.shrink(targets) - gap[..., None])


def exploration_cost(q, epsilon, advantage_learning=0.0, *, masked=False, parts=(), scale=LINEAR):
    """What acting at random with probability `epsilon` costs: [..., A] -> [...].

    At least 0. The best value less this is the value of acting epsilon-greedily (expected Sarsa,
    van Seijen et al., 2009). Gaps that advantage learning has widened, by at most that much of 1,
    first count as what they stand for (`widen_gap`). masked: whether illegal actions, whose value
    is ILLEGAL, are left out.
    """
    if parts:
        rest = dict(advantage_learning=advantage_learning, masked=masked, scale=scale)
        each = tf.split(q, parts, axis=-1)
        return tf.add_n([exploration_cost(part, epsilon, **rest) for part in each])
    best = tf.reduce_max(q, axis=-1, keepdims=True)
    gap = scale.shrink(best) - scale.shrink(q)
    cost = gap - advantage_learning * tf.minimum(gap, 1.0)
    if scale is not LINEAR:  # on which it is the same, but for rounding
        cost = best - scale.stretch(scale.shrink(best) - cost)
    if not masked:
        return epsilon * tf.reduce_mean(cost, axis=-1)
    legal = q > ILLEGAL / 2
    count = tf.reduce_sum(tf.cast(legal, q.dtype), axis=-1)
    return epsilon * tf.reduce_sum(tf.where(legal, cost, 0.0), axis=-1) / tf.maximum(count, 1.0)


# -------------------------------------------------------------------------------------------------
# Returns


def n_step_targets(rewards, discounts, values, *, gamma, n):
    """n-step targets: [B, P + n - 1], [B, P + n - 1], [B, P, N] -> [B, P, N].

    Sutton and Barto (2018), equation 7.1. `values[:, i]` are those of the state n steps behind step
    i. A discount of 0 (a terminated episode) ends the sum.
    """
    length = values.shape[1]
    rewards.shape.assert_is_compatible_with([values.shape[0], length + n - 1])
    discounts.shape.assert_is_compatible_with(rewards.shape)
    rewards = rewards[..., None]
    discounts = discounts[..., None]
    total = values
    # From the last step back: G_t = r_t + gamma d_t G_{t+1}, for all starting steps at once.
    for k in reversed(range(n)):
        total = rewards[:, k : k + length] + gamma * discounts[:, k : k + length] * total
    return total


def lambda_returns(rewards, discounts, values, last, *, gamma, lam):
    """Peng's Q(lambda) returns: [B, T], [B, T], [B, T + 1], [B, T] -> [B, T].

    G_t = r_t + gamma d_t ((1 - lambda) V_{t+1} + lambda G_{t+1}) (Peng and Williams, 1996;
    Gallici et al., 2024, section 3). `values[:, t]` is the value of the state of step t. A
    discount of 0 (a terminated episode) ends the sum. `last` marks steps whose observation was
    the last of an episode: the sum ends before such a step with its value, as it ends behind the
    last step.
    """
    rewards.shape.assert_is_compatible_with(values[:, 1:].shape)
    length = rewards.shape[1]
    total = values[:, -1]
    returns = []
    for t in reversed(range(length)):
        if t < length - 1:
            total = values[:, t + 1] + lam * tf.where(last[:, t + 1], 0.0, total - values[:, t + 1])
        total = rewards[:, t] + gamma * discounts[:, t] * total
        returns.append(total)
    return tf.stack(returns[::-1], axis=1)


def gae(rewards, discounts, values, last, *, gamma, lam):
    """Generalised advantage estimates: [B, T], [B, T], [B, T + 1], [B, T] -> [B, T].

    Schulman et al. (2016), equation 16. A discount of 0 (a terminated episode) ends the sum. `last`
    marks steps whose observation was the last of an episode: that observation's value is
    bootstrapped from if the episode was cut short, and the sum ends before the step.
    """
    rewards.shape.assert_is_compatible_with(values[:, 1:].shape)
    length = rewards.shape[1]
    ended = tf.concat([tf.cast(last[:, 1:], rewards.dtype), tf.zeros_like(rewards[:, :1])], axis=1)
    goes_on = 1.0 - ended
    errors = rewards + gamma * discounts * values[:, 1:] - values[:, :-1]
    total = tf.zeros_like(rewards[:, 0])
    advantages = []
    for i in reversed(range(length)):
        total = errors[:, i] + gamma * lam * discounts[:, i] * goes_on[:, i] * total
        advantages.append(total)
    return tf.stack(advantages[::-1], axis=1)


# -------------------------------------------------------------------------------------------------
# Losses


def huber(error, delta=1.0):
    """Squared near 0, linear beyond `delta`: 0.5 e^2, or delta (|e| - delta / 2). Elementwise."""
    size = tf.abs(error)
    return tf.where(size <= delta, 0.5 * tf.square(error), delta * (size - 0.5 * delta))


def td_loss(q, actions, targets, mask, *, delta=1.0, parts=(), scale=LINEAR, histogram=None):
    """Temporal-difference loss: [B, P, A, N], [B, P], [B, P, N], [B, P] -> (scalar, diagnostics).

    With N = 1 the Huber loss of the mean return, otherwise quantile regression (`quantile_huber`),
    on the scale of values. With a Histogram q are logits of its N bins, targets means [B, P, 1],
    and the loss is the cross-entropy. The mean over the steps whose `mask` is 1; no gradient enters
    the targets. Diagnostics: q_mean, the mean value of the actions taken; td_error, the mean size
    of the error.
    """
    actions.shape.assert_is_compatible_with(q.shape[:-2])
    means_only = histogram is not None
    targets.shape.assert_is_compatible_with([*q.shape[:-2], 1 if means_only else q.shape[-1]])
    targets = tf.stop_gradient(targets)
    if means_only:
        logits = select_quantiles(q, actions, parts)  # [B, P, N]
        mean = histogram.mean(logits)
        error = mean - targets[..., 0]
        each = histogram.cross_entropy(logits, targets[..., 0])
    elif q.shape[-1] == 1:
        mean = select_actions(q[..., 0], actions, parts)  # [B, P]
        error = mean - targets[..., 0]
        each = huber(scale.shrink(mean) - scale.shrink(targets[..., 0]), delta)
    else:
        quantiles = select_quantiles(q, actions, parts)  # [B, P, N]
        mean = tf.reduce_mean(quantiles, axis=-1)
        error = mean - tf.reduce_mean(targets, axis=-1)
        each = quantile_huber(scale.shrink(quantiles), scale.shrink(targets), delta)
    count = tf.maximum(tf.reduce_sum(mask), 1.0)
    diagnostics = dict(
        q_mean=tf.reduce_sum(mask * mean) / count,
        td_error=tf.reduce_sum(mask * tf.abs(error)) / count,
    )
    return tf.reduce_sum(mask * each) / count, diagnostics


def quantile_huber(quantiles, targets, delta=1.0):
    """Quantile-regression loss: [..., N], [..., N] -> [...].

    QR-DQN (Dabney et al., 2018), equation 10. Every quantile is drawn to every one of the target,
    from above by its fraction and from below by the rest.
    """
    count = quantiles.shape[-1]
    error = targets[..., None, :] - quantiles[..., None]  # [..., N, N]
    fraction = (tf.range(count, dtype=error.dtype)[:, None] + 0.5) / count  # [N, 1]
    weight = tf.abs(fraction - tf.cast(error < 0, error.dtype))
    return tf.reduce_sum(tf.reduce_mean(weight * huber(error, delta) / delta, axis=-1), axis=-1)


def conservative(q, actions, mask):
    """The conservative term of CQL: [..., A], [...], [...] -> scalar.

    Kumar et al. (2020), equation 4. How far the soft maximum of Q lies above the Q of what the
    data did, on average over the steps whose `mask` is 1.
    """
    above = tf.reduce_logsumexp(q, axis=-1) - select_actions(q, actions)
    return tf.reduce_sum(mask * above) / tf.maximum(tf.reduce_sum(mask), 1.0)


def expectile(values, targets, mask, part):
    """Expectile regression of implicit Q-learning: [...], [...], [...], 0 to 1 -> scalar.

    Kostrikov et al. (2022), equation 5. Squared errors weigh `part` where the target lies above the
    value, 1 - `part` below; no gradient enters the targets.
    """
    error = tf.stop_gradient(targets) - values
    weight = tf.where(error > 0, part, 1.0 - part)
    return tf.reduce_sum(mask * weight * tf.square(error)) / tf.maximum(tf.reduce_sum(mask), 1.0)


def cloning(logits, actions, mask):
    """Cross-entropy of the actions in the data: [..., A], [...], [...] -> scalar.

    Nats per step whose `mask` is 1, or of that weight.
    """
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits)
    return tf.reduce_sum(mask * each) / tf.maximum(tf.reduce_sum(mask), 1e-6)


def advantage_weights(advantages, temperature, limit=20.0):
    """How much an action counts when it is imitated: exp(advantage x temperature): [...] -> [...].

    At most `limit` (advantage-weighted regression, Peng et al., 2019, as in Kostrikov et al., 2022,
    equation 7). No gradient enters.
    """
    return tf.minimum(tf.exp(temperature * tf.stop_gradient(advantages)), limit)


def ppo_losses(
    logits,
    value,
    actions,
    old_log_p,
    old_value,
    advantages,
    returns,
    mask,
    *,
    clip,
    value_clip=None,
    parts=(),
    scale=LINEAR,
):
    """The terms of PPO's loss: [B, A], then [B] each -> dict of scalars.

    Schulman et al. (2017), equations 7 and 9. A dict of policy_loss, value_loss (half the squared
    error on the scale of values; with `value_clip` the worse of the clipped and the plain one) and
    entropy, to be weighted and added; further approx_kl, as the mean of (ratio - 1) - log ratio,
    and clip_fraction. Means over what `mask` keeps.
    """

    def mean(x):
        return tf.reduce_sum(mask * x) / tf.maximum(tf.reduce_sum(mask), 1.0)

    log_p = log_probabilities(logits, parts)
    log_ratio = select_actions(log_p, actions, parts) - old_log_p
    ratio = tf.exp(log_ratio)
    clipped = tf.clip_by_value(ratio, 1.0 - clip, 1.0 + clip)
    value, old_value, returns = (scale.shrink(x) for x in (value, old_value, returns))
    value_error = tf.square(value - returns)
    if value_clip is not None:
        clipped_value = old_value + tf.clip_by_value(value - old_value, -value_clip, value_clip)
        value_error = tf.maximum(value_error, tf.square(clipped_value - returns))
    return dict(
        policy_loss=-mean(tf.minimum(ratio * advantages, clipped * advantages)),
        value_loss=0.5 * mean(value_error),
        entropy=-mean(tf.reduce_sum(tf.exp(log_p) * log_p, axis=-1)),
        approx_kl=mean(ratio - 1.0 - log_ratio),
        clip_fraction=mean(tf.cast(tf.abs(ratio - 1.0) > clip, ratio.dtype)),
    )


# -------------------------------------------------------------------------------------------------
# The optimizer


def adam(weights, gradient, moments, count, *, rate, epsilon, beta1=0.9, beta2=0.999):
    """One step of Adam (Kingma and Ba, 2015, algorithm 1): -> (weights, moments).

    Each has the shape of `weights`. `count` is the number of this step, from 1. Keras has no pure
    Adam on TensorFlow, and a loop inside one compiled call needs one.
    """
    first = beta1 * moments[0] + (1 - beta1) * gradient
    second = beta2 * moments[1] + (1 - beta2) * tf.square(gradient)
    count = tf.cast(count, weights.dtype)
    corrected = first / (1 - tf.pow(beta1, count))
    size = tf.sqrt(second / (1 - tf.pow(beta2, count)))
    return weights - rate * corrected / (size + epsilon), (first, second)
