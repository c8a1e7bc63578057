"""Measure tfdqt's speed side by side with Stable-Baselines3 and eager PyTorch, on the CPU.

    python -m venv .bench && .bench/bin/pip install -r requirements-bench.txt
    python scripts/benchmark.py --bench-python=.bench/bin/python
    python scripts/benchmark.py --rows gpt-breakout

Each row is a pair of processes that both warm up (imports, compilation, the start of learning) and then measure in turn,
A B A B: while one works, the other waits. Ratios are taken pair by pair. The rows:

  dense-cartpole  Our dense DQN against Stable-Baselines3's: same network, batch, updates per step, replay size, target
  dense-breakout  network, fixed epsilon. What is timed is the training loop itself, between two calls of its callback.
                  Ours is measured as it is meant to be used: --num-envs environments in processes of their own, which step
                  them while the learner learns. Stable-Baselines3's DQN works in one process (torch's threads aside),
                  in its usual form with one environment; --sb3-envs gives it more of them.
  gpt-update      Our update of the GPT (target network, double Q, gradient, clipping, Adam, Polyak) against the same in
                  eager PyTorch, from the same weights on the same batches; that their losses agree is checked first.
                  Ours does as many updates in a call as training does.
  ppo-cartpole    Our PPO against Stable-Baselines3's: same dense network under policy and value, environments, rollouts,
  ppo-breakout    batch and passes over them; theirs in its usual DummyVecEnv, ours with as many processes as run_ppo.py takes.
  gpt-breakout    Our training run of the GPT on Breakout-ram-v0, at what its target is stated for
                  (one update per 4 steps, batch 32, context 4) and otherwise with the default settings.

The arithmetic floor is the time that an update's matrix products alone would take at the rate of a large float32 matrix
product, measured in the same process after each measurement. Elementwise work, lookups and environments are not in it.
"""

import dataclasses
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from tfdqt.checks import check_dqn, check_ppo
from tfdqt.config import DQNConfig, NetworkConfig, PPOConfig, UsageError, default_config, default_parallel
from tfdqt.runs import check_at_least_one, run_main, write_rows

ROOT = Path(__file__).resolve().parent.parent
RowName = Literal["dense-cartpole", "dense-breakout", "gpt-update", "gpt-breakout", "ppo-cartpole", "ppo-breakout"]


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure tfdqt's speed side by side with Stable-Baselines3 and eager PyTorch."""

    bench_python: str | None = None
    """The python of an environment made from requirements-bench.txt; gpt-breakout needs none."""
    rows: tuple[RowName, ...] = ("dense-cartpole", "dense-breakout", "gpt-update", "gpt-breakout", "ppo-cartpole", "ppo-breakout")
    """What to measure."""
    repeats: int = 5
    """Measurements of each side."""
    steps: int = 10_000
    """Environment steps per measurement; gpt-update does the updates that belong to them."""
    out: str = "benchmarks/speed.csv"
    """CSV of every measurement; an older one is replaced."""
    num_envs: int | None = None
    """Environments of our side in the dense rows, by default as many as tfdqt's default settings for them have."""
    sb3_envs: int = 1
    """Environments of Stable-Baselines3's side, in its DummyVecEnv."""
    workers: int | None = None
    """Processes that step the environments of our side, by default as many as the training scripts have; 0: none."""
    threads: int | None = None
    """Threads inside TensorFlow's operations, by default as many as the training scripts have."""
    torch_threads: int = 0
    """Threads of torch (0: as many as torch chooses or one, whichever a short try finds faster)."""


class Row(NamedTuple):
    """One comparison."""

    name: str
    env: str
    network: NetworkConfig
    cfg: DQNConfig | PPOConfig
    unit: str  # what is counted: env steps or updates
    target: float  # the least ratio; without a counterpart the least rate
    theirs: str | None = None  # script of the counterpart
    theirs_env: dict | None = None  # its environment, as arguments of gymnasium.make


def make_rows(args):
    """All rows by name."""
    endless = dict(total_steps=10 ** 9)  # a run ends when the measurements do

    def dense(name, env, target_every, theirs_env, **settings):
        defaults = default_config(env)[1]
        network = NetworkConfig(network="dense", context=1, prev_action=False, ram_bits=False, standardize=False, dueling=False,
                                hidden=(256, 256))
        cfg = DQNConfig(**endless, **settings, num_envs=args.num_envs or defaults.num_envs, chunk=defaults.chunk,
                        replay_size=100_000, learning_starts=1_000, gamma=0.99, n_step=1, double=False,
                        learning_rate=1e-4, final_learning_rate=1e-4, max_grad_norm=10.0, target_tau=1.0,
                        target_every=target_every, epsilon_start=0.1, epsilon_end=0.1, reward_transform="none",
                        life_loss_ends=False, advantage_learning=0.0)
        return Row(name, env, network, cfg, "env steps", 2.5, "sb3.py", theirs_env)

    def ppo(name, env, theirs_env, **settings):
        network = NetworkConfig(network="dense", context=1, hidden=(64, 64))
        cfg = PPOConfig(**endless, **settings, final_learning_rate=3e-4)
        return Row(name, env, network, cfg, "env steps", 2.0, "sb3.py", theirs_env)

    network, cfg = default_config("Breakout-ram-v0")
    update_network = NetworkConfig(context=4, layers=2, heads=4, width=64, prev_action=False, ram_bits=False, standardize=False,
                                   dueling=False, tokens="steps", gru_gate=False)
    update_cfg = dataclasses.replace(cfg, batch_size=32, n_step=3, double=True, target_tau=0.005, target_every=1,
                                     final_learning_rate=cfg.learning_rate, reward_transform="none", advantage_learning=0.0,
                                     target_epsilon=0.0)
    network = dataclasses.replace(network, context=4)
    steady = dataclasses.replace(cfg, **endless, epsilon_start=cfg.epsilon_end, batch_size=32, updates_per_step=0.25)
    rows = (dense("dense-cartpole", "CartPole-v1", 5_000, dict(id="CartPole-v1"), batch_size=64, updates_per_step=0.5),
            dense("dense-breakout", "Breakout-ram-v0", 2_500, dict(id="Breakout-v0", obs_type="ram"), batch_size=32,
                  updates_per_step=0.25),
            Row("gpt-update", "Breakout-ram-v0", update_network, update_cfg, "updates", 1.5, "torch_update.py"),
            Row("gpt-breakout", "Breakout-ram-v0", network, steady, "env steps", 600.0),
            ppo("ppo-cartpole", "CartPole-v1", dict(id="CartPole-v1"), rollout_steps=32, update_epochs=20),
            ppo("ppo-breakout", "Breakout-ram-v0", dict(id="Breakout-v0", obs_type="ram"), entropy_weight=0.01))
    return {row.name: row for row in rows}


def describe(row):
    """What is measured, in a line."""
    network, cfg = row.network, row.cfg
    size = (f"MLP {list(network.hidden)}" if network.network == "dense" else
            f"GPT of {network.layers} layers, width {network.width}, {network.heads} heads, context {network.context}")
    if isinstance(cfg, PPOConfig):
        return (f"{row.env}, {size}, {cfg.num_envs} environments, rollouts of {cfg.rollout_steps} steps, {cfg.update_epochs} passes, "
                f"batch {cfg.batch_size}")
    way = (f"{updates_per_call(cfg)} updates a call" if row.unit == "updates" else
           f"{cfg.updates_per_step:g} updates per step, {cfg.num_envs} environments")
    return f"{row.env}, {size}, batch {cfg.batch_size}, {cfg.n_step}-step, {way}"


def updates_per_call(cfg):
    """Updates that training does in one call."""
    if isinstance(cfg, PPOConfig):
        return cfg.update_epochs * cfg.num_envs * cfg.rollout_steps // cfg.batch_size
    return round(cfg.updates_per_step * cfg.chunk * cfg.num_envs)


def matmul_flops(row, info):
    """Floating point operations of the matrix products of one update; lookups and GRU gates are not counted."""
    network, cfg = row.network, row.cfg
    features = info.obs_shape[0] * (9 if network.ram_bits and info.obs_dtype == "uint8" else 1)
    if network.network == "dense":
        sizes = (network.context * features, *network.hidden, info.num_actions)
        first, *rest = (a * b for a, b in zip(sizes, sizes[1:]))
        rest = sum(rest)
    else:
        width, tokens = network.width, network.context
        first = tokens * features * width
        attended = 2 * tokens * width  # scores and weighted values
        rest = tokens * (network.layers * ((3 + 1 + 4 + 4) * width ** 2 + attended) + width * info.num_actions)
    passes = 1 if isinstance(cfg, PPOConfig) else 2 + cfg.double + (cfg.advantage_learning > 0)
    # Backwards, each product has two: for its weights and for its input. The first layer's input needs none.
    return 2 * cfg.batch_size * (passes * (first + rest) + first + 2 * rest)


# ---------------------------------------------------------------------------------------------------------------------
# The driver


def check_args(args):
    """Raise UsageError for arguments that can't work."""
    check_at_least_one(args, "repeats", "steps", "num_envs", "sb3_envs", "threads")
    if args.workers is not None and args.workers < 0:
        raise UsageError("--workers must be 0 or more.")
    if args.torch_threads < 0:
        raise UsageError(f"--torch-threads must be 0 or more, not {args.torch_threads}.")
    if not args.rows:
        raise UsageError("--rows must name at least one row.")
    rows = make_rows(args)
    for name in args.rows:
        cfg = rows[name].cfg
        if isinstance(cfg, PPOConfig):
            check_ppo(cfg)
            continue
        check_dqn(cfg)
        each = cfg.updates_per_step * args.sb3_envs
        updates = each * max(1, round(1 / each))
        if rows[name].theirs == "sb3.py" and abs(updates - round(updates)) > 1e-6:
            raise UsageError(f"--sb3-envs={args.sb3_envs} can't keep {cfg.updates_per_step:g} updates per step; choose 1 or "
                             f"a multiple of {round(1 / cfg.updates_per_step)}.")
    if any(rows[name].theirs for name in args.rows):
        check_bench_python(args.bench_python)
    return [rows[name] for name in args.rows]


def check_bench_python(python):
    """Raise UsageError if `python` can't import what we measure against."""
    advice = ("make one by `python -m venv .bench && .bench/bin/pip install -r requirements-bench.txt` and give "
              "--bench-python=.bench/bin/python, or choose --rows gpt-breakout.")
    if python is None:
        raise UsageError(f"Stable-Baselines3 and PyTorch are measured in an environment of their own: {advice}")
    try:
        subprocess.run([python, "-c", "import torch, stable_baselines3, gymnasium, ale_py"], check=True, capture_output=True,
                       env=bare_environ())
    except OSError as error:
        raise UsageError(f"--bench-python={python} can't be started ({error.strerror}): {advice}") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"--bench-python={python} can't import stable_baselines3 ({reason}): {advice}") from None


def bare_environ():
    """The environment variables for the other python, whose packages are its own."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def ask(process, goal=None):
    """Ask a measured process for `goal` counts, or just wait until it is warm; returns its answer."""
    if goal is not None:
        try:
            process.stdin.write(f"{goal}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as reading finds out
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise UsageError(f"A measured process ended with exit code {process.wait()}; what it wrote above says why.")


def start(command, settings, env=None):
    """Start a measured process and wait until it is warm: -> (process, what it says of itself)."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command, json.dumps(settings)], stdin=pipe, stdout=pipe, text=True, env=env)
    try:
        return process, ask(process)
    except BaseException:
        stop(process)
        raise


def stop(process):
    """End a measured process."""
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def check_losses(ours, theirs):
    """Raise UsageError unless both sides, from equal weights on equal batches, had equal losses."""
    theirs = np.reshape(theirs["losses"], (-1, ours["updates_per_call"])).mean(axis=1)
    if not np.allclose(ours["losses"], theirs, rtol=1e-2):
        raise UsageError(f"The two GPT updates are not the same: mean losses {ours['losses']} against {theirs.tolist()}; "
                         "compare tfdqt/gpt.py and tfdqt/dqn.py with benchmarks/torch_update.py.")


def measure(row, args, info):
    """Measure one row: -> list of dicts, one a measurement, ours and theirs in turn."""
    flops = matmul_flops(row, info)
    goal = args.steps if row.unit == "env steps" else max(1, round(args.steps * row.cfg.updates_per_step))
    found, sides = [], []
    with tempfile.TemporaryDirectory() as folder:
        ppo = isinstance(row.cfg, PPOConfig)
        algorithm = "ppo" if ppo else "dqn"
        given = {key: getattr(args, key) for key in ("workers", "threads") if getattr(args, key) is not None}
        settings = dict(env=row.env, theirs_env=row.theirs_env, unit=row.unit, network=dataclasses.asdict(row.network),
                        algorithm=algorithm, cfg=dataclasses.asdict(row.cfg), actions=info.num_actions,
                        torch_threads=args.torch_threads, sb3_envs=args.sb3_envs, warm_up=1_000 + (0 if ppo else row.cfg.learning_starts),
                        updates_per_call=updates_per_call(row.cfg), **default_parallel(row.env, algorithm) | given,
                        exchange=str(Path(folder, "update.npz")))
        try:
            sides.append(("ours", *start([sys.executable, str(ROOT / "benchmarks" / "ours.py")], settings)))
            if row.theirs:
                script = str(ROOT / "benchmarks" / row.theirs)
                sides.append(("theirs", *start([args.bench_python, script], settings, bare_environ())))
            if row.unit == "updates":
                check_losses(sides[0][2], sides[1][2])
            for repeat in range(args.repeats):
                for side, process, about in sides:
                    answer = ask(process, goal)
                    about = {key: value for key, value in about.items() if key not in ("losses", "updates_per_call")}
                    floor = flops * answer["updates"] / answer["matmul_rate"]
                    found.append(dict(row=row.name, repeat=repeat, side=side, unit=row.unit, **answer,
                                      per_second=answer["count"] / answer["seconds"], matmul_flops_per_update=flops,
                                      floor_percent=100 * floor / answer["seconds"], **about))
                rates = [entry["per_second"] for entry in found[-len(sides):]]
                print(f"  {repeat + 1}/{args.repeats}: " + " against ".join(f"{rate:,.0f}" for rate in rates) +
                      f" {row.unit}/s" + (f", {rates[0] / rates[1]:.2f}x" if row.theirs else ""), flush=True)
        finally:
            for _, process, _ in sides:
                stop(process)
    return found


def summary(row, found):
    """One line of the table."""
    def column(side, key):
        return np.array([entry[key] for entry in found if entry["side"] == side])

    sides = ("ours", "theirs") if row.theirs else ("ours",)
    medians = [f"{np.median(column(side, 'per_second')):,.0f}" for side in sides] + ["-"] * (2 - len(sides))
    floors = [f"{np.median(column(side, 'floor_percent')):.1f}%" for side in sides] + ["-"] * (2 - len(sides))
    ratio, reached = "-", np.median(column("ours", "per_second"))
    if row.theirs:
        ratios = column("ours", "per_second") / column("theirs", "per_second")
        reached = np.median(ratios)
        ratio = f"{ratios.min():.2f} / {reached:.2f} / {ratios.max():.2f}"
    target = f">= {row.target:g}{'x' if row.theirs else ''}: {'met' if reached >= row.target else 'missed'}"
    return [row.name, f"{row.unit}/s", *medians, ratio, *floors, target]


def machine():
    """What the machine is, for the CSV."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    try:
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        commit = git.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = ""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return dict(cpu=cpu, cores=os.cpu_count(), date=date, commit=commit)


def command_line(args):
    """The command, without what is particular to one machine."""
    same = [f"--{field.name.replace('_', '-')}={getattr(args, field.name)}" for field in dataclasses.fields(args)
            if field.name not in ("bench_python", "rows", "out") and getattr(args, field.name) != field.default]
    return shlex.join(["python", "scripts/benchmark.py", "--rows", *args.rows, *same])


def write(path, found):
    """Write all measurements so far."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, found)
    except OSError as error:
        raise UsageError(f"{path} can't be written ({error.strerror}); choose another --out.") from None


def print_table(lines):
    """Columns as wide as their widest entry."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip())


def main():
    args = tyro.cli(Args, description=__doc__)
    rows = check_args(args)

    from tfdqt.envs import env_info, make_env

    about = dict(machine(), command=command_line(args))
    print(f"{about['cpu']}, {about['cores']} cores, {about['date']}")
    found, lines = [], [["row", "unit", "ours", "theirs", "ratio min/median/max", "floor ours", "floor theirs", "target"]]
    for row in rows:
        print(f"{row.name}: {describe(row)}", flush=True)
        env = make_env(row.env)
        info = env_info(env, row.env)
        env.close()
        measured = measure(row, args, info)
        found += [dict(entry, **about) for entry in measured]
        write(args.out, found)
        lines.append(summary(row, measured))
    print("\nMedians. Floor: the part of the time that the update's matrix products alone would take.")
    if any(row.theirs == "sb3.py" for row in rows):
        print("Dense DQN rows: ours steps the environments beside the learner; Stable-Baselines3's DQN "
              f"steps {args.sb3_envs} in its only process.")
    print_table(lines)
    print(f"Every measurement: {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)
