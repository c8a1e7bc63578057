"""Signals and processes around a run: handlers that are its alone, and ends that come in time.

Imports no TensorFlow, for the processes that step environments use it too.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tfdqt.errors import UsageError

CLOSE_SECONDS = 4  # that all environments of a run have for their close(), together
EXIT_SECONDS = 2  # that the interpreter has to end after that
BOX = "╭╮╰╯│─ "  # what tyro draws around errors
SIGNALS = (signal.SIGINT, signal.SIGTERM)

# -------------------------------------------------------------------------------------------------
# Signals

_before = {}  # signal -> its handler before the run took it
_forking = threading.local()  # mask: the signals that were blocked before a fork, or None


def take_signals(handle):
    """Let handle(number, frame) handle SIGINT and SIGTERM in this process, and in no child of it.

    A simulator that an environment forks would else ignore what is to end it. Returns a function
    that puts the handlers of before back.
    """
    outer = dict(_before)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    for number, handler in before.items():
        _before.setdefault(number, handler)
        signal.signal(number, handle)

    def give_back():
        for number, handler in before.items():
            signal.signal(number, handler)
        _before.clear()
        _before.update(outer)

    return give_back


def is_ctrl_c(error):
    """Whether an error is the KeyboardInterrupt of whoever wants the end at once.

    While `take_signals` handles the first signal none can come of it: then it is someone else's,
    such as an environment's own.
    """
    return isinstance(error, KeyboardInterrupt) and not _before


def _before_fork():
    # A signal that reaches the child before it has its own handlers would be lost.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if _before else None


def _after_fork():
    mask = getattr(_forking, "mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child():
    pending = signal.sigpending()
    for number, handler in _before.items():
        # A handler would raise here, where nobody sees it; the child has done nothing yet.
        early = number in pending and callable(handler)
        signal.signal(number, signal.SIG_DFL if early else handler)
    _before.clear()
    _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)

# -------------------------------------------------------------------------------------------------
# Ends


_script = []  # not empty while this process runs a script


class _TooLong(BaseException):
    """Raised inside a close() that takes too long."""


def _call(close):
    close()


@contextlib.contextmanager
def _interrupted_after(seconds):
    """Within the block, what `_call` calls is interrupted after so long, and again if it goes on.

    Where signals can be handled, which is the main thread; elsewhere nothing is interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        while frame is not None:
            if frame.f_code is _call.__code__:
                raise _TooLong
            frame = frame.f_back

    handler = signal.signal(signal.SIGALRM, interrupt)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


@contextlib.contextmanager
def a_script():
    """Within the block the process is a script's: it may be ended by what can't be interrupted."""
    _script.append(True)
    try:
        yield
    finally:
        _script.pop()


@contextlib.contextmanager
def _ended_after(seconds):
    """Within the block, end the process after so long, if it is a script's.

    A close() may swallow interruptions, or hang in native code that knows of none.
    """
    if not _script:
        yield
        return
    done = threading.Event()

    def watch():
        if not done.wait(seconds):
            print(
                "error: close() of an environment does not end and can't be interrupted, so the "
                "process was ended; what the newest checkpoint holds is kept.",
                file=sys.stderr,
                flush=True,
            )
            sys.stdout.flush()
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def close_all(closers, seconds=CLOSE_SECONDS):
    """Call every function of `closers`, whatever they do, in so many seconds together.

    Returns what went wrong: a list of strings such as "it raised ValueError: no such window".
    """
    faults = []
    with _interrupted_after(seconds), _ended_after(seconds + EXIT_SECONDS):
        for close in closers:
            try:
                _call(close)
            except _TooLong:
                faults.append(f"it did not end within {seconds:g} seconds")
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                text = (str(error).strip() or "without a message").splitlines()[0]
                faults.append(f"it raised {type(error).__name__}: {text}")
    return faults


def tell_of_close(name, faults):
    """Print a line about environments of `name` whose close() went wrong, if any did."""
    if faults:
        from tqdm import tqdm  # knows of the progress line

        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        text = f"Closing an environment of {name} failed: {faults[0]}{more}; nothing else is lost."
        tqdm.write(text, file=sys.stderr)


def end_group(process):
    """Kill a process and all that it started, if it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(1)


def end_own_group():
    """Kill this process and all that it started."""
    with contextlib.suppress(ProcessLookupError):  # it leads none: that group is another's
        os.killpg(os.getpid(), signal.SIGKILL)


def end_own_group_with_parent(seconds):
    """Kill this process and all that it started so long behind the end of its parent.

    In a process of multiprocessing, whatever its main thread does then.
    """

    def watch():
        multiprocessing.parent_process().join()
        time.sleep(seconds)
        end_own_group()

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def one_thread(name):
    """An executor of one thread, which is waited for unless Ctrl-C ends the process."""
    pool = ThreadPoolExecutor(1, name)
    wait = True
    try:
        yield pool
    except KeyboardInterrupt:
        wait = False  # the thread may hang in an environment
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=not wait)


def end_in_time(code):
    """Let what environments left behind keep the interpreter from its end only for EXIT_SECONDS.

    It waits for threads and for children of multiprocessing, maybe for ever. code: to exit with.
    """
    left = multiprocessing.active_children() + [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    if not left:
        return

    def watch():
        threading.main_thread().join()
        time.sleep(EXIT_SECONDS)
        print("What an environment left running was ended.", file=sys.stderr)
        for child in multiprocessing.active_children():
            child.kill()
        time.sleep(0.5)  # is enough if that was all
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    threading.Thread(target=watch, daemon=True).start()


# -------------------------------------------------------------------------------------------------
# Scripts as processes of their own


@contextlib.contextmanager
def starting(program):
    """Raise UsageError, a sentence, where what starts `program` raises OSError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{program} can't be started ({error.strerror}).") from None


def run_script(command):
    """Run a script of the project to its end: [python, path, flag, ...]; what it prints is dropped.

    Raises UsageError with its last line if it fails, or if it can't be started.
    """
    with starting(command[0]):
        ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        words = " ".join([Path(command[1]).name, *command[2:]])
        raise UsageError(f"{words} failed: {last_line(ended.stderr)}")


def last_line(said):
    """The last line of what a script said, in which it tells why it failed.

    Where that is of a flag, tyro draws a box around it and adds how to get help.
    """
    lines = [line.strip(BOX) for line in said.splitlines()]
    told = [line for line in lines if line and not line.startswith("For full helptext")]
    return (told or ["no message"])[-1]
