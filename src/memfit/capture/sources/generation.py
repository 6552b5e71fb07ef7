"""The calls that `generate()` makes of a transformers decoder: the prompt's (prefill) and the next token's (decode).

Source: transformers 5.23, generation/utils.py, `_prepare_cache_for_generation`, `_prefill` and `_sample`: a
`DynamicCache` of the model's configuration, logits of the last position where the model can choose, no padding.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memfit.capture.phantom import dense
from memfit.capture.sources.loaded import Example, LoadedSource
from memfit.errors import UsageError
from memfit.memory.kv_cache import KEYS_AND_VALUES, STATES

PHASES = ("prefill", "decode")
DEFAULT_CONTEXT = 4096
"""Longest context where none is given."""

_LIMITS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "max_seq_len", "seq_length")
_CACHES = ("past_key_values", "cache_params")
_STATES = ("conv_states", "recurrent_states")


class Generation:
    """One call of a language model that generates, with the cache it takes over and leaves.

    Args:
        loaded: an `hf:` source.
        phase: prefill: the whole context at once, into an empty cache; decode: one token, the last of the context,
            onto a cache that holds the others.
        context: tokens of each sequence, the new one included; None takes the model's own limit, 4096 at the most.
        batch: sequences.

    Raises:
        UsageError: no `hf:` source, a model that does not generate with a cache, no such phase, a context below 1.
    """

    def __init__(self, loaded: LoadedSource, phase: str, context: int | None = None, batch: int | None = None) -> None:
        if phase not in PHASES:
            raise UsageError(
                "there is no such phase of generation", where="--phase", received=repr(phase), todo=_either(PHASES)
            )
        model = loaded.model
        if model is None or not loaded.name.startswith("hf:"):
            raise UsageError(
                "phases are of language models that transformers builds",
                where="--phase",
                received=loaded.name,
                todo="give an hf:CONFIG source, or leave --phase out and give the inputs",
            )
        for name, value in (("--context", context), ("--batch", batch)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1", where=name, received=str(value), todo="give 1 or more")
        self.model, self.phase, self.batch = model, phase, batch or 1
        self.cache_name = _check(loaded.name, model)
        self.limit = context_limit(model)
        self.context = context or min(self.limit or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        self.source = loaded.name
        self.cache: Any = None

    def example(self) -> Example:
        """Make the call's arguments, with a cache that is empty as yet."""
        self.cache = _fresh_cache(self.model)
        ids = self._ids(1 if self.phase == "decode" else self.context)
        return Example((), {"input_ids": ids, **self._options()}, ("input_ids",))

    def prepare(self) -> None:
        """Fill the cache with what comes before the call, by running it."""
        if self.phase == "decode" and self.context > 1:
            self.model(input_ids=self._ids(self.context - 1), **self._options())

    def held(self) -> dict[str, Tensor]:
        """Give the tensors in the cache by name, as long as their layers need them."""
        found: dict[str, Tensor] = {}
        seen: set[int] = set()
        for index, layer in enumerate(self.cache.layers):
            for name, tensor in _tensors_of(layer):
                if id(tensor) in seen or not tensor.numel():
                    continue
                seen.add(id(tensor))
                prefix = STATES if name.startswith(_STATES) else KEYS_AND_VALUES
                found[f"{prefix}{index}.{name}"] = _whole_window(layer, tensor)
        return found

    def fixed(self) -> Iterator[Tensor]:
        """Give what the cache's layers have from the start: the window's length as a tensor."""
        for layer in self.cache.layers:
            yield from (value for value in vars(layer).values() if isinstance(value, Tensor) and not value.dim())

    def check_filled(self) -> None:
        """Refuse a model that left its cache empty.

        Raises:
            UsageError: it did.
        """
        if not self.held():
            raise _no_cache(self.source, self.model, "a run that left its cache empty")

    def notes(self) -> tuple[str, ...]:
        """Say what a reader of the figures must know."""
        if self.limit is None or self.context <= self.limit:
            return ()
        return (f"the context of {self.context} tokens is longer than the model's own limit of {self.limit}",)

    def _ids(self, length: int) -> Tensor:
        return dense((self.batch, length), torch.int64)

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {self.cache_name: self.cache, "use_cache": True}
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            options["logits_to_keep"] = 1
        return options


def context_limit(model: nn.Module) -> int | None:
    """Give the longest context that the model's configuration states; None where it states none."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    values = (getattr(text, name, None) for name in _LIMITS)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _check(source: str, model: Any) -> str:
    """Name the argument that takes the cache; refuse models that generate in another way, or not at all."""
    parameters = inspect.signature(model.forward).parameters
    name = next((n for n in _CACHES if n in parameters), None)
    if getattr(model.config, "is_encoder_decoder", False):
        raise _no_cache(source, model, "an encoder-decoder")
    if name is None or "input_ids" not in parameters or not model.can_generate():
        raise _no_cache(source, model, "a model that does not generate")
    if not model._supports_default_dynamic_cache():
        raise _no_cache(source, model, "a model with a cache of its own kind")
    return name


def _no_cache(source: str, model: nn.Module, what: str) -> UsageError:
    return UsageError(
        "this model is no decoder with a cache of keys and values",
        where=source,
        received=f"{type(model).__name__}: {what}",
        todo="name a …ForCausalLM class under architectures, or leave --phase out",
    )


def _fresh_cache(model: Any) -> Any:
    cache = importlib.import_module("transformers").DynamicCache
    return cache(config=model.config.get_text_config(decoder=True))


def _tensors_of(layer: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield what a layer of the cache holds: tensors, and tensors in dicts."""
    for name, value in vars(layer).items():
        if isinstance(value, Tensor) and value.dim():
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", item) for key, item in value.items() if isinstance(item, Tensor))


def _whole_window(layer: Any, tensor: Tensor) -> Tensor:
    """Give a sliding layer's tensor as long as the window.

    The layer keeps one token less, because the next one comes on top; the token before lies in the same storage.
    """
    window = getattr(layer, "sliding_window", None)
    if not getattr(layer, "is_sliding", False) or window is None or tensor.dim() != 4:
        return tensor
    step = tensor.stride(-2)
    if tensor.shape[-2] != window - 1 or tensor.storage_offset() < step:
        return tensor
    shape = (*tensor.shape[:-2], window, tensor.shape[-1])
    return tensor.as_strided(shape, tensor.stride(), tensor.storage_offset() - step)


def _either(names: tuple[str, ...]) -> str:
    return f"use {' or '.join(names)}"
