"""The maths of Q-learning and PPO on tensors. Knows no network, no replay buffer and no environment."""

import math

from tfdqt.backend import tf


def bootstrap_values(q_target, q_online=None):
    """The value of a state: [..., A] -> [...].

    With `q_online`, the online network chooses the action and the target network values it (double Q-learning,
    van Hasselt et al., 2016); without, the target network does both (Mnih et al., 2015).
    """
    if q_online is None:
        return tf.reduce_max(q_target, axis=-1)
    q_online.shape.assert_is_compatible_with(q_target.shape)
    return select_actions(q_target, tf.argmax(q_online, axis=-1, output_type=tf.int32))


def select_actions(q, actions):
    """Q of the actions taken: [..., A], [...] -> [...], or their quantiles: [..., A, N], [...] -> [..., N]."""
    if q.shape.rank == actions.shape.rank + 2:
        return tf.reduce_sum(q * tf.one_hot(actions, q.shape[-2], dtype=q.dtype)[..., None], axis=-2)
    return tf.reduce_sum(q * tf.one_hot(actions, q.shape[-1], dtype=q.dtype), axis=-1)


def plausible(q, logits, part):
    """Q with the lowest value there is for actions less than `part` times as likely as the likeliest: [..., A], [..., A] -> [..., A].

    So that nothing is chosen for a value that the data has hardly tested (discrete BCQ; Fujimoto, Conti, Ghavamzadeh and Pineau, 2019,
    equation 11). `logits` are those of the cloned policy; with a part of 0 all are plausible.
    """
    if not part:
        return q
    return tf.where(logits >= tf.reduce_max(logits, axis=-1, keepdims=True) + math.log(part), q, q.dtype.min)


def widening(q, actions, part):
    """What advantage learning (Bellemare et al., 2016) subtracts from the target of an action: [..., A], [...] -> [...], at least 0.

    That `part` of the gap between the best action's value and its own. The gap counts as at most 1, as Munchausen Q-learning clips its
    own (Vieillard et al., 2020).
    """
    return part * tf.minimum(tf.reduce_max(q, axis=-1) - select_actions(q, actions), 1.0)


def slip_cost(q, epsilon, advantage_learning=0.0):
    """What a random action with probability `epsilon` costs where the best is meant: [..., A] -> [...], at least 0.

    The best value less this is the value of acting epsilon-greedily (expected Sarsa, van Seijen et al., 2009). Gaps that
    advantage learning has widened, by at most that much of 1, are first brought back to what they stand for.
    """
    gap = tf.reduce_max(q, axis=-1, keepdims=True) - q
    return epsilon * tf.reduce_mean(gap - advantage_learning * tf.minimum(gap, 1.0), axis=-1)


def n_step_targets(rewards, discounts, values, *, gamma, n):
    """n-step targets: [B, P+n-1], [B, P+n-1], [B, P, ...] -> [B, P, ...] (Sutton and Barto, 2018, equation 7.1).

    `values[:, i]` is the value of the state n steps behind step i, or its quantiles. A discount of 0 (a terminated episode) ends the sum.
    """
    length = values.shape[1]
    rewards.shape.assert_is_compatible_with([values.shape[0], length + n - 1])
    discounts.shape.assert_is_compatible_with(rewards.shape)
    total = values
    if values.shape.rank > 2:
        rewards, discounts = rewards[..., None], discounts[..., None]
    # From the far end: G_t = r_t + gamma d_t G_{t+1}, all starting steps at once.
    for k in reversed(range(n)):
        total = rewards[:, k:k + length] + gamma * discounts[:, k:k + length] * total
    return total


def huber(error, delta=1.0):
    """Squared near 0, linear beyond `delta`: 0.5 e^2, or delta (|e| - delta / 2). Elementwise."""
    size = tf.abs(error)
    return tf.where(size <= delta, 0.5 * tf.square(error), delta * (size - 0.5 * delta))


def td_loss(q, actions, targets, mask, *, delta=1.0):
    """Temporal-difference loss: [B, P, A], [B, P], [B, P], [B, P] -> (scalar, diagnostics).

    The mean Huber loss over the steps whose `mask` is 1; no gradient enters the targets.
    """
    actions.shape.assert_is_compatible_with(q.shape[:-1])
    targets.shape.assert_is_compatible_with(q.shape[:-1])
    chosen = select_actions(q, actions)
    error = chosen - tf.stop_gradient(targets)
    count = tf.maximum(tf.reduce_sum(mask), 1.0)
    loss = tf.reduce_sum(mask * huber(error, delta)) / count
    return loss, dict(q_mean=tf.reduce_sum(mask * chosen) / count, td_error=tf.reduce_sum(mask * tf.abs(error)) / count)


def quantile_td_loss(quantiles, actions, targets, mask, *, delta=1.0):
    """Quantile-regression TD loss (Dabney et al., 2018): [B, P, A, N], [B, P], [B, P, N], [B, P] -> (scalar, diagnostics).

    Every quantile of the action taken is drawn to every quantile of the target, from above by its fraction and from
    below by the rest. The mean over the steps whose `mask` is 1; no gradient enters the targets.
    """
    count = quantiles.shape[-1]
    targets.shape.assert_is_compatible_with([*quantiles.shape[:-2], count])
    chosen = select_actions(quantiles, actions)  # [B, P, N]
    error = tf.stop_gradient(targets)[..., None, :] - chosen[..., None]  # [B, P, N, N]
    fraction = (tf.range(count, dtype=tf.float32)[:, None] + 0.5) / count  # [N, 1]
    weight = tf.abs(fraction - tf.cast(error < 0, tf.float32))
    each = tf.reduce_sum(tf.reduce_mean(weight * huber(error, delta) / delta, axis=-1), axis=-1)  # [B, P]
    steps = tf.maximum(tf.reduce_sum(mask), 1.0)
    mean = tf.reduce_mean(chosen, axis=-1)
    gap = tf.abs(tf.reduce_mean(targets, axis=-1) - mean)
    return tf.reduce_sum(mask * each) / steps, dict(q_mean=tf.reduce_sum(mask * mean) / steps,
                                                    td_error=tf.reduce_sum(mask * gap) / steps)


def conservative(q, actions, mask):
    """The conservative term of CQL (Kumar et al., 2020, equation 4): [..., A], [...], [...] -> scalar.

    How far the soft maximum of Q lies above the Q of what the data did, on average over the steps whose `mask` is 1.
    """
    above = tf.reduce_logsumexp(q, axis=-1) - select_actions(q, actions)
    return tf.reduce_sum(mask * above) / tf.maximum(tf.reduce_sum(mask), 1.0)


def expectile(values, targets, mask, part):
    """Expectile regression of implicit Q-learning (Kostrikov et al., 2022, equation 5): [...], [...], [...], 0 to 1 -> scalar.

    Squared errors weigh `part` where the target lies above the value, 1 - `part` below; no gradient enters the targets.
    """
    error = tf.stop_gradient(targets) - values
    weight = tf.where(error > 0, part, 1.0 - part)
    return tf.reduce_sum(mask * weight * tf.square(error)) / tf.maximum(tf.reduce_sum(mask), 1.0)


def cloning(logits, actions, mask):
    """Cross-entropy of the actions in the data: [..., A], [...], [...] -> scalar, nats per step whose `mask` is 1, or of that weight."""
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits)
    return tf.reduce_sum(mask * each) / tf.maximum(tf.reduce_sum(mask), 1e-6)


def advantage_weights(advantages, temperature, limit=20.0):
    """How much an action counts when it is imitated: exp(advantage x temperature), at most `limit` (advantage-weighted regression,
    Peng et al., 2019, as in Kostrikov et al., 2022, equation 7): [...] -> [...]. No gradient enters."""
    return tf.minimum(tf.exp(temperature * tf.stop_gradient(advantages)), limit)


def gae(rewards, discounts, values, last, *, gamma, lam):
    """Generalised advantage estimates (Schulman et al., 2016, equation 16): [N, T], [N, T], [N, T + 1], [N, T] -> [N, T].

    A discount of 0 (a terminated episode) ends the sum. `last` marks steps whose observation was the last of an episode: that
    observation's value is bootstrapped from if the episode was cut short, and the sum ends before the step.
    """
    rewards.shape.assert_is_compatible_with(values[:, 1:].shape)
    length = rewards.shape[1]
    goes_on = 1.0 - tf.concat([tf.cast(last[:, 1:], tf.float32), tf.zeros_like(rewards[:, :1])], axis=1)
    errors = rewards + gamma * discounts * values[:, 1:] - values[:, :-1]
    total, advantages = tf.zeros_like(rewards[:, 0]), []
    for i in reversed(range(length)):
        total = errors[:, i] + gamma * lam * discounts[:, i] * goes_on[:, i] * total
        advantages.append(total)
    return tf.stack(advantages[::-1], axis=1)


def ppo_losses(logits, value, actions, old_log_p, old_value, advantages, returns, mask, *, clip, value_clip=None):
    """The terms of PPO (Schulman et al., 2017, equations 7 and 9): [B, A], then [B] each -> dict of scalars.

    policy_loss, value_loss (half the squared error; with `value_clip` the worse of the clipped and the plain one) and entropy,
    to be weighted and added; beside them approx_kl, as the mean of (ratio - 1) - log ratio, and clip_fraction. Means over
    what `mask` keeps.
    """
    def mean(x):
        return tf.reduce_sum(mask * x) / tf.maximum(tf.reduce_sum(mask), 1.0)

    log_p = tf.nn.log_softmax(logits)
    log_ratio = select_actions(log_p, actions) - old_log_p
    ratio = tf.exp(log_ratio)
    clipped = tf.clip_by_value(ratio, 1.0 - clip, 1.0 + clip)
    value_error = tf.square(value - returns)
    if value_clip is not None:
        near = old_value + tf.clip_by_value(value - old_value, -value_clip, value_clip)
        value_error = tf.maximum(value_error, tf.square(near - returns))
    return dict(policy_loss=-mean(tf.minimum(ratio * advantages, clipped * advantages)), value_loss=0.5 * mean(value_error),
                entropy=-mean(tf.reduce_sum(tf.exp(log_p) * log_p, axis=-1)), approx_kl=mean(ratio - 1.0 - log_ratio),
                clip_fraction=mean(tf.cast(tf.abs(ratio - 1.0) > clip, tf.float32)))


def adam(weights, gradient, moments, count, *, rate, epsilon, beta1=0.9, beta2=0.999):
    """One step of Adam (Kingma and Ba, 2015, algorithm 1): -> (weights, moments), each the shape of `weights`.

    `count` is the number of this step, from 1. Keras has no pure Adam on TensorFlow, and a loop inside one compiled
    call needs one.
    """
    first = beta1 * moments[0] + (1 - beta1) * gradient
    second = beta2 * moments[1] + (1 - beta2) * tf.square(gradient)
    count = tf.cast(count, weights.dtype)
    step = rate * (first / (1 - tf.pow(beta1, count))) / (tf.sqrt(second / (1 - tf.pow(beta2, count))) + epsilon)
    return weights - step, (first, second)
