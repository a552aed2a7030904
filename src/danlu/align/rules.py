"""Rewards by a rule: a Python function of the user's, asked in a process of its own.

In:  where the function is, ``package.module:function``; sampled answers.
Out: their scores; "not a number" for answers on which the function failed.
Left out: the process itself (``rule_worker``), sums of rewards (``rewards``).

The function is called as ``function(prompts, answers)``: prompts are lists of messages ``{"role", "content"}``,
answers are texts, and it gives one number for each. It should always give the same for the same, or a resumed run is
another. Where it raises, says nothing in time, dies or gives something else than a number for each, it is asked for the
halves of the batch, and for their halves: a bad answer costs itself, and few others if time runs out. Where parts were
in time and the whole was not, the next batch begins with such parts. Three batches in a row without any score end the
run, which goes on from its last checkpoint once the function is mended; of several processes each sees a share of them,
and practice decides.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.align.rollout import Sampled
from danlu.errors import UserError, unknown

_START_SECONDS = 120.0  # to import what the user's module imports
_PATIENCE = 5.0  # times its seconds, for a batch that is asked in parts
_LEAST = 1 / 8  # of its seconds, for the smallest part
_ENDS = 20  # of processes, for such a batch, and all their starts together have the seconds of one
_FAILURES = 3  # in a row
_Messages = list[dict[str, str]]
_WORKER = Path(__file__).with_name("rule_worker.py")
# By its path and not as a module of danlu, whose package would be imported with it.
_COMMAND = (sys.executable, "-c", "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')")


class RuleError(Exception):
    """What a function did instead of giving scores."""


class LateError(RuleError):
    """It said nothing in time."""


class RuleScore:
    """Scores by a user's function.

    Args:
        source: ``package.module:function``, found from the working directory or among what is installed.
        timeout: seconds for a batch; five times that for one that has to be asked in parts.
        told: takes a sentence about answers on which it failed: its words once, unless a whole batch is lost.
        whole: whether it is asked for whole batches; the third in a row without any score ends the run then.

    Raises:
        UserError: there is no such module or function, naming the nearest; the module cannot be imported.
    """

    def __init__(self, source: str, timeout: float, told: Callable[[str], None], whole: bool = True) -> None:
        self.source, self._timeout, self._told, self._whole = source, timeout, told, whole
        self._failures = 0
        self._said: set[str] = set()
        self._slowest = 0.0  # seconds that an answer has taken
        self._most = sys.maxsize  # answers to begin with
        self._advised = False
        self._worker = _Worker(source)

    def __call__(self, sampled: Sampled) -> Tensor:
        """(B,) fp32 scores.

        Raises:
            UserError: no answer got a score for the third batch in a row; the module can no longer be imported.
        """
        prompts = [[{"role": m.role, "content": m.content} for m in prompt.messages] for prompt in sampled.prompts]
        scores, problem = self._by_parts(prompts, sampled.texts)
        lost = sum(map(math.isnan, scores))
        self._failures = self._failures + 1 if lost == len(scores) else 0
        if self._failures:
            problem = problem or "gave no finite number"
        if self._whole and self._failures >= _FAILURES:
            raise UserError(
                f"the reward '{self.source}' scored no answer of {_FAILURES} batches in a row, the last time because "
                f"it {problem}; mend the function, or take it out of rewards"
            )
        if self._failures or (problem and problem not in self._said):
            self._told(f"the reward '{self.source}' {problem}; {lost} of {len(scores)} answers are left out")
            self._said.add(problem)
        return torch.tensor(scores, dtype=torch.float32, device=sampled.finished.device)

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _by_parts(self, prompts: Sequence[_Messages], answers: Sequence[str]) -> tuple[list[float], str]:
        """One number per answer, NaN where there is none, and what went wrong first.

        Larger parts come first: when patience is at an end, what was not scored stands near an answer that is to blame.
        """
        scores, every = [math.nan] * len(answers), range(len(answers))
        problem, late, left, ends = "", False, _PATIENCE * self._timeout, 0
        starting = _START_SECONDS
        parts = deque(every[start : start + self._most] for start in every[:: self._most])
        took: dict[range, float] = {}
        while parts and min(left, starting) > 0 and ends < _ENDS:
            part = parts.popleft()
            rows = slice(part.start, part.stop)
            asleep = time.monotonic()
            self._awake()
            started = time.monotonic()
            starting -= started - asleep
            try:
                patience = min(left, self._patience(len(part) / len(answers)))
                scores[rows] = self._ask(prompts[rows], answers[rows], patience)
                took[part] = time.monotonic() - started
                self._slowest = max(self._slowest, took[part])
            except RuleError as error:
                problem, late = problem or str(error), late or isinstance(error, LateError)
                half = len(part) // 2
                parts.extend([part[:half], part[half:]] if half else [])
            left -= time.monotonic() - started
            ends += not self._worker.lives()
        self._learn(len(answers), took, late)
        return scores, problem

    def _learn(self, n: int, took: Mapping[range, float], late: bool) -> None:
        """From the seconds of the parts of a batch that were in time: how large parts the next one begins with.

        Larger ones again, by half, when all were there in less than half the time: a machine is not busy for ever.
        """
        if not took:
            return
        largest = max(map(len, took))
        if late:
            self._most = largest
            # One that hangs at some answers is quick with the others: their seconds do not add up to a time-out.
            needs = sum(took.values()) * n / sum(map(len, took))
            if not self._advised and needs > self._timeout:
                self._advised = True
                self._told(
                    f"the reward '{self.source}' scored parts of a batch in time and not the whole; it needs about "
                    f"{needs:.2g} seconds for {n} answers and has {self._timeout:g}: raise its timeout in rewards"
                )
        elif largest < n and 2 * max(took.values()) < self._timeout:
            self._most = max(self._most, largest + (largest + 1) // 2)

    def _patience(self, share: float) -> float:
        """Seconds for a share of a batch: as much of the time-out, but twice what any answer has taken so far.

        With the whole time-out for every part, a function that hangs at a few answers would use up all patience before
        the parts without them are asked.
        """
        return min(self._timeout, max(self._timeout * max(share, _LEAST), 2 * self._slowest))

    def _awake(self) -> None:
        """Start the process again if it is gone.

        Raises:
            UserError: it cannot be.
        """
        if self._worker.lives():
            return
        try:
            self._worker = _Worker(self.source)
        except UserError as error:
            raise UserError(
                f"the process of the reward '{self.source}' had ended and cannot be started again: {error}; mend the "
                "module and give the same command, which goes on from the last checkpoint"
            ) from None

    def _ask(self, prompts: Sequence[_Messages], answers: Sequence[str], patience: float) -> list[float]:
        """One number per answer, NaN where it is not finite.

        Raises:
            RuleError: they are not there.
        """
        reply = self._worker.exchange({"prompts": prompts, "answers": answers}, patience)
        if "error" in reply:
            raise RuleError(f"raised {reply['error']}")
        scores = [math.nan if score is None else float(score) for score in reply["scores"]]
        if len(scores) != len(answers):
            raise RuleError(f"gave {len(scores)} numbers for {len(answers)} answers")
        return scores


def check(source: str) -> None:
    """Whether a function can be had, in a process of its own as later: its module is run and nothing is asked.

    Raises:
        UserError: there is no such module or function, naming the nearest; the module cannot be imported.
    """
    _Worker(source).close()


def module_file(source: str) -> Path | None:
    """The file that holds a function, so that a stage runs again when it changes; None if it is in no plain file.

    Nothing is imported.

    Raises:
        UserError: there is no such module.
    """
    parts = source.partition(":")[0].split(".")
    places = [os.getcwd(), *sys.path]
    if importlib.machinery.PathFinder.find_spec(parts[0], places) is None:
        raise UserError(f"the reward '{source}': there is no module '{parts[0]}' here or among what is installed")
    for place in places:
        whole = Path(place, *parts)
        for file in (whole.with_name(f"{whole.name}.py"), whole / "__init__.py"):
            if file.is_file():
                return file
    return None


class _Worker:
    """A process that holds the function.

    Raises:
        UserError: it cannot be had.
    """

    def __init__(self, source: str) -> None:
        # A session of its own: Ctrl-C is for the run, and whatever the function starts ends with it.
        self._process = subprocess.Popen(
            [*_COMMAND, str(_WORKER), source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.close = weakref.finalize(self, _end, self._process)
        try:
            said = self._read(_START_SECONDS)
        except RuleError as error:
            raise UserError(f"the reward '{source}' {error} while its module was imported") from None
        module, _, name = source.partition(":")
        if "missing" in said:
            self.close()
            raise unknown("function", name, said["valid"], f"module {module}")
        if "error" in said:
            self.close()
            raise UserError(f"the reward '{source}' cannot be imported: {said['error']}")

    def lives(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def exchange(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Ask once.

        Raises:
            RuleError: it died, or said nothing in time; it is gone then.
        """
        return self._read(timeout, json.dumps(request).encode() + b"\n")

    def _read(self, timeout: float, request: bytes = b"") -> dict[str, Any]:
        """Write a request and read a line; at the end of patience the process is killed, which ends the reading."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            _kill(self._process)

        patience = threading.Timer(timeout, give_up)
        patience.start()
        try:
            with contextlib.suppress(OSError):  # it has died: nothing will be read
                self._process.stdin.write(request)
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            patience.cancel()
        if late.is_set() or not line.endswith(b"\n"):
            self.close()
        if line.endswith(b"\n"):
            said: dict[str, Any] = json.loads(line)
            return said
        if late.is_set():
            raise LateError(f"said nothing within {timeout:g} seconds")
        raise RuleError(f"ended with exit code {self._process.returncode}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a worker and whatever its function has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    _kill(process)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()
    process.wait()
