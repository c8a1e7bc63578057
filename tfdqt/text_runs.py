"""What every script on text runs needs: the networks and data that a run's settings name, its play, and its newest weights."""

import dataclasses
import math
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from tfdqt import bert, corpora, reading, tasks, text, writing
from tfdqt.backend import tf
from tfdqt.config import TextConfig, TextNetworkConfig, UsageError, load_config
from tfdqt.policy import choose, epsilon_greedy
from tfdqt.runs import find_run, load_checkpoint

PLAYED = {"maze": len(tasks.STARTS), "maze-po": len(tasks.STARTS), "wordle": 64, "corpus": 16}  # games, or texts, in an actor's chunk
QUICK = {"maze": len(tasks.STARTS), "maze-po": len(tasks.STARTS), "wordle": 512, "corpus": 64}  # games in an evaluation underway


class TrainedText(NamedTuple):
    """The networks of a text run and where they come from."""

    task: tuple  # Task or Corpus
    transformer: bert.PrunedTransformerModel
    head: bert.DeepQLearningModel
    settings: dict  # config.json
    step: int  # updates


def make_networks(run_dir, settings):
    """The task of a run's settings (an object with their names) and fresh networks for it: -> (task, transformer, head).

    The tokenizer of a corpus is kept in the run's folder, so that the run can write where the corpus is not.
    """
    network = settings.network
    tokenizer = bert.load_tokenizer(network.encoder) if network.encoder else None
    if settings.task == "corpus":
        kept = Path(run_dir, "tokenizer")
        folder = settings.corpus or Path(run_dir, "corpus")
        if settings.corpus is None and not folder.exists():
            corpora.write_king_james(folder)
        if kept.exists():
            tokenizer = bert.load_tokenizer(kept)
        task = corpora.make_corpus(folder, settings.reward, tokenizer=tokenizer, vocabulary=settings.vocabulary, length=settings.window + 1)
        if not kept.exists():
            task.tokenizer.save_pretrained(kept)
    else:
        task = tasks.make_task(settings.task, tokenizer)
    return task, *_networks_for(task, network, settings.seed)


def _networks_for(task, network, seed):
    tf.keras.utils.set_random_seed(seed)
    return bert.build_text_networks(network, vocabulary=len(task.tokenizer), length=task.length, num_actions=len(task.actions),
                                    causal=task.causal, features=getattr(task, "features", None))


def make_data(task, settings):
    """What a run learns from: -> (batches, a sentence about them)."""
    cfg = settings.text
    if isinstance(task, corpora.Corpus):
        batches = corpora.CorpusBatches(task, settings.new_items, cfg)
        if not len(batches):
            raise UsageError(f"The texts in {task.folder} hold no {settings.window} words in a row; give longer ones, or less --window.")
        return batches, f"about {len(batches) * settings.new_items:,} texts of {settings.window} words, {len(task.actions):,} words known."
    data = task.data(np.random.default_rng([settings.seed, 6]), settings.episodes or task.size, cfg.gamma)
    batches = tasks.Batches(tasks.prepare(data, cfg.method, keep_best=cfg.keep_best), settings.new_items, settings.seed)
    return batches, (f"{len(batches.order):,} {type(batches.items).__name__.lower()}s to learn from, mean return of a game in the "
                     f"data {data.games.mean():.2f}.")


def make_run_scores(task, transformer, head, cfg, *, beta=None):
    """`writing.make_scores` as a run's settings say, or with another `beta` (0: the cloned policy alone; infinite: Q alone)."""
    imitates = cfg.method in ("clone", "filtered")
    if imitates and beta:
        raise UsageError(f"A {cfg.method} run has no values to steer by; leave out --beta.")
    beta = cfg.beta if beta is None else None if beta == math.inf else beta
    if beta is not None and not cfg.cloning and not imitates:
        raise UsageError("This run did not learn the cloned policy that beta steers; train with --cloning greater than 0.")
    return writing.make_scores(transformer, head, beta=beta, clone=imitates or beta == 0, plausible=cfg.plausible)


def write(task, scores, cfg, count, seed):
    """`count` whole texts of a corpus, written as a run's settings say."""
    return writing.generate(scores, task.tokenizer, [""] * count, words=task.length - 1, length=task.length, seed=seed,
                            method="greedy" if cfg.greedy else "sample", temperature=cfg.temperature)


def make_text_player(task, network, cfg, rows, seed):
    """`play(weights, step) -> (Transition or Episode, returns)`: a chunk of games, or texts, as the run acts.

    `rows` holds the probability of a random action, for tasks that act greedily; others explore by drawing.
    """
    transformer, head = _networks_for(task, network, 0)
    scores, variables = make_run_scores(task, transformer, head, cfg), [*transformer.variables, *head.variables]
    rng, count = np.random.default_rng(seed), PLAYED[task.name]
    epsilon, drawn = rows[0] if cfg.greedy else 0.0, dict(greedy=cfg.greedy, temperature=cfg.temperature)

    def act(boards, text, at):
        return epsilon_greedy(rng, choose(rng, np.asarray(scores(text, at)), **drawn), len(task.actions), epsilon)

    def play(weights, step):
        for variable, array in zip(variables, weights):
            variable.assign(array)
        if not isinstance(task, corpora.Corpus):
            return tasks.record(task, count, rng, act)
        texts = write(task, scores, cfg, count, int(rng.integers(1 << 31)))
        items = reading.episodes(task.tokenizer, texts, task.length, task.reward)
        return items, items.reward.sum(axis=1)

    return play


ActedMetrics = NamedTuple("ActedMetrics", [
    *text.Metrics.__annotations__.items(),
    ("acted_return", float),  # mean return of the actors' last 10 chunks, random actions included
    ("staleness", float),  # updates between the weights that a chunk was played with and its use, mean of the last 100 chunks
    ("actors", int),  # alive
    ("replaced", int),  # actors that died and were replaced, since this process started
])


class ActedBatches:
    """The batches of a run's data, each with as much beside it of what actors played with the weights of the time.

    So there are as many updates for each thing played however many actors there are: a batch waits for them, and they wait while
    nothing is taken.
    """

    def __init__(self, batches, pool, weights, cfg, *, broadcast_every, done=0, skip=0, should_stop=None):
        """weights: () -> list of arrays. done: updates so far. skip: batches that a resumed run passes over; nothing is played for them."""
        self.batches, self.pool, self.weights, self.cfg, self.every = batches, pool, weights, cfg, broadcast_every
        self.updates, self.skip, self.should_stop = done, skip, should_stop
        self.sent, self.left, self.ages, self.returns = None, [], deque(maxlen=100), deque(maxlen=10)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for items in self.batches:
            if self.skip:
                self.skip -= 1
                yield items
                continue
            if self.sent is None or self.updates - self.sent >= self.every:
                self.pool.broadcast(self.weights(), self.updates, self.updates)
                self.sent = self.updates
            yield tasks.join([items, *self._take(len(items.action))])
            self.updates += self.cfg.updates_per_batch

    def _take(self, count):
        """The next `count` things played; fewer if the run is to stop."""
        while sum(len(part.action) for part in self.left) < count:
            if self.should_stop and self.should_stop():
                break
            part = self.pool.take()
            if part is not None:
                items, returns = part.found
                self.left.append(items)
                self.ages.append(self.updates - part.version)
                self.returns.append(returns.mean())
        if not self.left:
            return []
        together = tasks.join(self.left)
        self.left = [type(together)(*(field[count:] for field in together))]
        return [type(together)(*(field[:count] for field in together))]

    def metrics(self, metrics):
        """`text.Metrics` with what there is to tell of the actors."""
        alive, replaced = self.pool.census()
        acted, age = (float(np.mean(values or [np.nan])) for values in (self.returns, self.ages))
        return ActedMetrics(*metrics, acted, age, alive, replaced)


def returns_of(task, scores, cfg, *, games, seed, best_of=1):
    """Play, or write, `games` times: -> (returns [games], texts written or None). best_of: of so many texts the best counts."""
    if not isinstance(task, corpora.Corpus):
        return tasks.play(task, scores, games=games, seed=seed, greedy=cfg.greedy, temperature=cfg.temperature), None
    texts = write(task, scores, cfg, games * best_of, seed)
    worth = np.array([task.reward(written) for written in texts]).reshape(games, best_of)
    best = worth.argmax(axis=1)
    return worth.max(axis=1), [texts[i * best_of + j] for i, j in enumerate(best)]


def beside(task, texts):
    """What to read a mean return beside: published scores, or how varied the texts are."""
    if texts is None:
        return "Published: " + ", ".join(f"{name} {score:g}" for name, score in task.scores.items()) + "."
    found = writing.diversity(texts)
    numbers = ", ".join(f"{name} {value:.3f}" for name, value in found.items() if name != "collapsed")
    return f"{numbers}.{' ' + found['collapsed'] if found['collapsed'] else ''}"


def perplexity(task, transformer, head, cfg, *, batch_size=64):
    """The cloned policy's perplexity on the held-out texts of a corpus, per word it knows; NaN if nothing is held out."""
    total = count = 0.0
    batches = corpora.CorpusBatches(task, batch_size, dataclasses.replace(cfg, method="clone"), heldout=True)

    @tf.function
    def surprise(ids, actions, mask):
        logits = head.prior(transformer(ids)[:, :-1])
        return tf.reduce_sum(mask * tf.nn.sparse_softmax_cross_entropy_with_logits(actions, logits))

    for items in batches:
        total += float(surprise(tf.constant(items.text), tf.constant(items.action), tf.constant(items.mask)))
        count += float(items.mask.sum())
    return float(np.exp(total / count)) if count else float("nan")


def sample_texts(task, count):
    """A few texts as the task shows them, [count, length] token ids."""
    if isinstance(task, corpora.Corpus):
        texts = next(iter(reading.text_loader(task.folder, task.length - 1, count))).numpy()
        return reading.encode(task.tokenizer, [line.decode() for line in texts], task.length)
    boards, rng = task.start(count, np.random.default_rng(0)), np.random.default_rng(1)
    for _ in range(3):
        task.step(boards, rng.integers(len(task.actions), size=count))
    return task.show(boards)[0]


def load_text_checkpoint(run_dir, checkpoint=None):
    """`runs.load_checkpoint` of a text run: -> (tree, path). Raises UsageError for one of another kind of run."""
    saved, path = load_checkpoint(run_dir, checkpoint)
    if "weights" not in saved:
        raise UsageError(f"{path} is not a checkpoint of a text run; give one from {run_dir}.")
    return saved, path


def load_text_run(run_dir, checkpoint=None):
    """The networks of a text run's newest checkpoint, or of the one named. Raises UsageError if there is none that is whole."""
    settings = load_config(find_run(run_dir) / "config.json", network=TextNetworkConfig, text=TextConfig)
    saved = load_text_checkpoint(run_dir, checkpoint)[0]
    task, transformer, head = make_networks(run_dir, SimpleNamespace(**settings))
    variables = [*transformer.variables, *head.variables]
    if [list(v.shape) for v in variables] != [list(np.shape(a)) for a in saved["weights"][:len(variables)]]:
        raise UsageError(f"The checkpoint of {run_dir} does not fit its config.json; put back the one that the run was started with.")
    for variable, array in zip(variables, saved["weights"]):
        variable.assign(array)
    return TrainedText(task, transformer, head, settings, saved["place"]["step"])
