"""A command's arguments in, its exit code out, whatever goes wrong on the way."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from prefopt.config.explain import explain
from prefopt.config.guard import check_flags, config_dir, install
from prefopt.config.staged import gathered
from prefopt.errors import FAILED, INTERRUPTED, OK, WRONG, RequestError, check_text, first_line, refuse


def command(config_name: str, task: Callable[[DictConfig], int]) -> int:
    """Run a command under Hydra with the arguments in sys.argv. Returns the exit code."""
    # oneDNN keeps a kernel for every shape it has met; a run meets thousands.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here instead of printing and exiting
    install()
    code = OK

    def run(cfg: DictConfig) -> int:
        nonlocal code  # which is lost where another launcher runs this in a process of its own
        code = max(code, found := _answer(lambda: task(cfg), config_name, FAILED))
        return found

    def compose_and_run() -> int:
        check_text(sys.argv[1:])
        check_flags()
        if config_name == "train":
            sys.argv[1:] = gathered(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)(run)()
        sweeps = sys.modules.get("prefopt.config.sweeps")
        return max(code, sweeps.exit_code if sweeps else OK)

    with _terminated_like_interrupted():
        return _answer(compose_and_run, config_name, WRONG)


def _answer(work: Callable[[], int], config_name: str, otherwise: int) -> int:
    """The exit code of some work; a wrong request is explained. otherwise: the code of an error nobody thought of."""
    try:
        return work()
    except (RequestError, HydraException, OmegaConfBaseException) as error:
        if "debug=true" in sys.argv:
            traceback.print_exc()
        if isinstance(error, RequestError):
            return refuse(str(error))
        return refuse(explain(error, config_name, [a for a in sys.argv[1:] if not a.startswith("-")]))
    except Exception as error:
        if "debug=true" in sys.argv:
            traceback.print_exc()
        if isinstance(error, RecursionError) and otherwise == WRONG:
            return refuse("what was asked stands for itself: a file among its own defaults, or ${} under its own key")
        print(f"failed: {type(error).__name__}: {first_line(error)}\ndebug=true shows where", file=sys.stderr)
        return otherwise
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        return INTERRUPTED  # Lightning turns the one into the other


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that what is half made is cleared away; training has an answer of its
    own, see `Stop`."""
    if threading.current_thread() is not threading.main_thread():  # where signals never arrive
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:  # Lightning ignores the second once it has answered one
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
