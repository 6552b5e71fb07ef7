"""Language models that generate: the cache by hand, both phases against real runs, budgets, and what is refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memfit import api
from memfit.capture.allocations import measure
from memfit.capture.entry import open_model
from memfit.errors import UsageError
from memfit.graph.io import from_json, to_json
from memfit.graph.model import BEFORE, StorageKind
from memfit.memory import kv_cache
from memfit.memory.cpu_workspaces import VERIFIED
from memfit.memory.cuda.context import context_bytes
from memfit.memory.cuda.simulate import Run, simulate
from memfit.memory.eager import timeline

transformers = pytest.importorskip("transformers")

COMMON = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 4096, "torch_dtype": "float32",
}  # fmt: skip
MLA = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT2 = {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": 256, "n_positions": 512, "torch_dtype": "float32"}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON},
    "mistral": {**COMMON, "sliding_window": 16},
    "gemma2": {**COMMON, "sliding_window": 16, "head_dim": 16},
    "gemma3_text": {**COMMON, "sliding_window": 16, "head_dim": 16, "num_hidden_layers": 6},
    "qwen3": {**COMMON, "head_dim": 32},
    "qwen3_moe": {**COMMON, **EXPERTS, "head_dim": 16},
    "mixtral": {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**COMMON, "sliding_window": 16, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**COMMON, **MLA},
    "gpt2": GPT2,
    "lfm2": {**COMMON},
}
BATCH, SIZE, WINDOW = 2, 4, 16


def by_hand(tokens: list[int], heads: int = 2, keys: int = 16, values: int = 16) -> int:
    """Bytes of keys and values, one number of tokens for each layer."""
    return BATCH * heads * (keys + values) * SIZE * sum(tokens)


def short(context: int) -> int:
    return min(context, WINDOW)


KV_BYTES: dict[str, Callable[[int], int]] = {
    "llama": lambda n: by_hand([n] * 4),
    "mistral": lambda n: by_hand([short(n)] * 4),
    "gemma2": lambda n: by_hand([short(n), n] * 2),
    "gemma3_text": lambda n: by_hand([short(n)] * 5 + [n]),
    "qwen3": lambda n: by_hand([n] * 4, keys=32, values=32),
    "qwen3_moe": lambda n: by_hand([n] * 4),
    "mixtral": lambda n: by_hand([n] * 4),
    "gpt_oss": lambda n: by_hand([short(n), n] * 2),
    "gpt2": lambda n: by_hand([n] * 4, heads=4),
    "lfm2": lambda n: by_hand([n] * 4),
}
CONTEXTS = (WINDOW // 2, WINDOW - 1, WINDOW, WINDOW + 1, 40)


def source(folder: Path, name: str, **changes: Any) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"model_type": name, **CONFIGS.get(name, COMMON), **changes}))
    return f"hf:{path}"


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", KV_BYTES)
def test_keys_and_values_by_hand(name: str, phase: str, tmp_path: Path) -> None:
    model = open_model(source(tmp_path, name))
    for context in CONTEXTS:
        graph = model.capture(phase=phase, context=context, batch=BATCH)
        assert kv_cache.totals(graph)["kv_cache_bytes"] == KV_BYTES[name](context), context
        assert kv_cache.totals(from_json(json.loads(json.dumps(to_json(graph))))) == kv_cache.totals(graph)


def test_latent_attention_is_counted_as_it_is_kept(tmp_path: Path) -> None:
    """The cache's own tensors are the truth, whatever a configuration lets one expect."""
    model = open_model(source(tmp_path, "deepseek_v3"))
    graph = model.capture(phase="decode", context=24, batch=BATCH)
    cache = transformers.DynamicCache(config=model.loaded.model.config)  # type: ignore[union-attr]
    real = type(model.loaded.model)._from_config(model.loaded.model.config)  # type: ignore[union-attr]
    with torch.no_grad():
        real(input_ids=torch.zeros((BATCH, 24), dtype=torch.int64), past_key_values=cache)
    kept = sum(t.nbytes for layer in cache.layers for t in vars(layer).values() if isinstance(t, torch.Tensor))
    assert kv_cache.totals(graph) == {"kv_cache_bytes": kept}


def test_states_do_not_grow(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256, "state_size": 8, "torch_dtype": "float32"}
    path = tmp_path / "mamba.json"
    path.write_text(json.dumps({"model_type": "mamba", **small}))
    model = open_model(f"hf:{path}")
    found = [kv_cache.totals(model.capture(phase="decode", context=n, batch=BATCH)) for n in (8, 32)]
    inner, taps = 128, 4
    assert found == [{"state_bytes": BATCH * 2 * inner * (taps + 8) * SIZE}] * 2


# Against real runs


def real_peak(model: Any, phase: str, context: int) -> int:
    """Run the phase on real tensors and give the bytes at its peak: parameters and buffers are not in it."""
    options: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    kept: list[Any] = []

    def call(length: int) -> None:
        with torch.no_grad():
            model(input_ids=torch.zeros((BATCH, length), dtype=torch.int64), past_key_values=kept[0], **options)

    def past(length: int) -> None:
        kept[:] = [transformers.DynamicCache(config=model.config)]
        if length:
            call(length)

    def whole() -> None:
        past(before)
        call(context - before)
        kept.clear()

    before = context - 1 if phase == "decode" else 0
    whole()
    earlier = measure(lambda: past(before), warm_up=0).events
    kept.clear()
    events = measure(whole).events
    assert events[: len(earlier)] == earlier
    peak = total = sum(earlier)
    for change in events[len(earlier) :]:
        total += change
        peak = max(peak, total)
    return peak


@pytest.mark.skipif(
    (torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()) not in VERIFIED,
    reason="the rules were not verified on this PyTorch and instruction set",
)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", CONFIGS)
def test_to_the_byte(name: str, phase: str, tmp_path: Path) -> None:
    opened = open_model(source(tmp_path, name))
    module: Any = opened.loaded.model
    real = type(module)._from_config(module.config).eval()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for context in (WINDOW // 2, 40):
            graph = opened.capture(phase=phase, context=context, batch=BATCH)
            assert timeline(graph).peak_bytes == real_peak(real, phase, context), context
    finally:
        torch.set_num_threads(before)


def test_each_layer_drops_what_it_copied(tmp_path: Path) -> None:
    """The cache grows by concatenation: the old tensor dies as soon as the new one is there."""
    graph = open_model(source(tmp_path, "llama")).capture(phase="decode", context=24, batch=BATCH, device="cuda")
    past = kv_cache.held(graph, "past_kv_cache.")
    assert [t.name for t in past[:3]] == ["past_kv_cache.0.keys", "past_kv_cache.0.values", "past_kv_cache.1.keys"]
    storages = {t.storage for t in past}
    assert len(storages) == 8
    for op in graph.ops:
        for copied in storages & {graph.tensors[i].storage for i in op.inputs}:
            old = graph.storages[copied]
            assert op.kind == "concat"
            assert (old.kind, old.birth, old.death) == (StorageKind.ACTIVATION, BEFORE, op.index + 1)
            new = graph.storages[graph.tensors[op.outputs[0]].storage]
            assert new.nbytes == old.nbytes // 23 * 24
            assert new.death == new.ideal_death == len(graph.ops)


def test_the_allocator_frees_the_past(tmp_path: Path) -> None:
    graph = open_model(source(tmp_path, "llama")).capture(phase="decode", context=4096, batch=BATCH, device="cuda")
    run = simulate(Run(graph), iterations=1)
    one = BATCH * 2 * 16 * 4096 * SIZE
    series = run.by_category["kv cache"]
    assert 0 <= 8 * one - series[0] <= 8 * BATCH * 2 * 16 * SIZE
    assert max(series) - 8 * one <= one
    assert series[-1] == 8 * one
    assert sum(line[-1] for line in run.by_category.values()) == run.per_op[-1]


def test_prefill_keeps_what_sliding_layers_need_no_more(tmp_path: Path) -> None:
    given = source(tmp_path, "mistral")
    prefill = api.profile(given, phase="prefill", context=40, batch=BATCH, memory="eager")
    assert prefill.totals["kv_cache_bytes"] == by_hand([16] * 4)
    assert any("keys and values take 32.0 KiB, but the cache holds 80.0 KiB after the run" in n for n in prefill.notes)
    decode = api.profile(given, phase="decode", context=40, batch=BATCH, memory="eager")
    assert any("holds 78.0 KiB before the run" in n for n in decode.notes)


# Results


def test_totals_add_up(tmp_path: Path) -> None:
    for phase in ("prefill", "decode"):
        result = api.profile(source(tmp_path, "llama"), phase=phase, context=64, batch=BATCH, dtype="bf16")
        t = result.totals
        assert (result.memory, result.device) == ("cuda", "cuda")
        assert t["kv_cache_bytes"] == by_hand([64] * 4) // 2
        parts = t["parameter_bytes"] + t["kv_cache_bytes"] + t["activation_peak_bytes"]
        assert parts == t["peak_allocated_bytes"] == t["peak_bytes"]
        assert (result.environment["phase"], result.environment["context"]) == (phase, 64)
        assert result.inputs[0]["shape"] == (BATCH, 64 if phase == "prefill" else 1)


def test_ideal_is_below_eager(tmp_path: Path) -> None:
    for phase in ("prefill", "decode"):
        eager, ideal = (
            api.profile(source(tmp_path, "gemma3_text"), phase=phase, context=40, memory=memory).totals["peak_bytes"]
            for memory in ("eager", "ideal")
        )
        assert ideal <= eager


def test_logits_are_of_one_position(tmp_path: Path) -> None:
    graph = open_model(source(tmp_path, "llama")).capture(phase="prefill", context=32, batch=BATCH)
    assert [graph.tensors[i].shape for i in graph.outputs] == [(BATCH, 1, 256)]


def test_the_default_context(tmp_path: Path) -> None:
    for limit, context in ((512, 512), (8192, 4096)):
        model = open_model(source(tmp_path, "llama", max_position_embeddings=limit))
        assert model.capture(phase="decode").environment["context"] == context


def test_a_context_beyond_the_limit_is_noted(tmp_path: Path) -> None:
    graph = open_model(source(tmp_path, "llama", max_position_embeddings=32)).capture(phase="prefill", context=33)
    assert graph.notes == ("the context of 33 tokens is longer than the model's own limit of 32",)


def test_one_token_has_no_past(tmp_path: Path) -> None:
    graph = open_model(source(tmp_path, "llama")).capture(phase="decode", context=1, batch=BATCH)
    assert kv_cache.held(graph, "past_") == []
    assert kv_cache.totals(graph) == {"kv_cache_bytes": by_hand([1] * 4)}


# Budgets


@pytest.mark.parametrize(("phase", "room"), [("prefill", 160 << 20), ("decode", 48 << 20)])
def test_the_largest_that_fit(phase: str, room: int, tmp_path: Path) -> None:
    given = source(tmp_path, "llama")
    budget = context_bytes(None) + room
    tried: list[str] = []
    totals = api.profile(given, phase=phase, batch=16, context=256, budget=budget, progress=tried.append).totals
    assert totals["fits"]
    assert totals["short_bytes"] == 0
    assert len(tried) <= 24
    context, batch = totals["max_context"], totals["max_batch"]
    assert 256 < context < 4096
    assert batch > 16

    def needs(batch: int, context: int) -> int:
        return api.profile(given, phase=phase, batch=batch, context=context).totals["peak_reserved_bytes"]

    assert needs(16, context) <= room < needs(16, context + 1)
    assert needs(batch, 256) <= room < needs(batch + 1, 256)
    short = api.profile(given, phase=phase, batch=batch + 1, context=256, budget=budget).totals
    assert not short["fits"]
    assert short["max_batch"] == batch
    assert short["short_bytes"] == short["peak_reserved_bytes"] + short["context_bytes"] - budget


def test_no_context_beyond_the_models_own(tmp_path: Path) -> None:
    given = source(tmp_path, "llama", max_position_embeddings=300)
    assert api.profile(given, phase="decode", context=100, budget="1GiB").totals["max_context"] == 300


def test_nothing_fits(tmp_path: Path) -> None:
    totals = api.profile(source(tmp_path, "llama"), phase="decode", context=64, budget="1MiB").totals
    assert (totals["fits"], totals["max_context"], totals["max_batch"]) == (False, 0, 0)


# Refusals


@pytest.mark.parametrize(
    ("name", "given", "parts"),
    [
        ("bert", {"phase": "decode"}, ["no decoder with a cache", "BertForMaskedLM", "…ForCausalLM"]),
        ("t5", {"phase": "decode"}, ["no decoder with a cache", "an encoder-decoder"]),
        ("rwkv", {"phase": "decode"}, ["no decoder with a cache", "RwkvForCausalLM"]),
        ("llama", {"phase": "generate"}, ["no such phase", "'generate'", "prefill or decode"]),
        ("llama", {"phase": "decode", "context": 0}, ["--context", "0", "give 1 or more"]),
        ("llama", {"phase": "decode", "batch": 0}, ["--batch", "0", "give 1 or more"]),
        ("llama", {"phase": "decode", "inputs": "1x8:int64"}, ["--input", "--batch and --context"]),
        ("llama", {"phase": "decode", "training": True}, ["--training", "--phase decode"]),
        ("llama", {"phase": "decode", "memory": "autograd"}, ["autograd", "cuda, eager or ideal"]),
        ("llama", {"context": 64}, ["--context", "64", "--phase prefill"]),
        ("llama", {"budget": "1GiB"}, ["--budget", "1GiB", "--phase prefill", "memfit train"]),
        ("llama", {"phase": "decode", "budget": "1GiB", "memory": "ideal"}, ["--budget", "--memory ideal"]),
        ("llama", {"phase": "decode", "budget": 0}, ["--budget", "0", "24GiB"]),
    ],
)
def test_what_is_refused(name: str, given: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        api.profile(source(tmp_path, name, d_model=64, num_heads=4, d_kv=16), **given)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_other_sources_have_no_phases(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="transformers builds"):
        api.profile("torchvision:resnet18", phase="decode")
    with pytest.raises(UsageError, match="transformers builds"):
        api.profile(torch.nn.Linear(2, 2), phase="decode")
    saved = tmp_path / "net.memfit.json"
    api.profile(source(tmp_path, "llama"), phase="decode", context=16, save_graph=saved)
    again = api.profile(str(saved), memory="cuda")
    assert again.totals["kv_cache_bytes"] == by_hand([16] * 4) // BATCH
    with pytest.raises(UsageError, match="saved graph"):
        api.profile(str(saved), phase="decode")
