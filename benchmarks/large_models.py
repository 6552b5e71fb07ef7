"""Profile language models too large for any machine at hand, each as one process: seconds, peak memory, parameters.

    python benchmarks/large_models.py

Configurations only; no weights exist. Needs `pip install 'memfit[zoo]'`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

CONFIGS: dict[str, tuple[dict[str, object], list[str]]] = {
    "Llama-like, 70 billion": (
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
            "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
        },
        ["1x2048:int64"],
    ),
    "Mixtral-like mixture of experts": (
        {
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
            "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 32768,
            "torch_dtype": "bfloat16", "tie_word_embeddings": False,
        },
        ["1x2048:int64"],
    ),
    "T5-like encoder-decoder, 11 billion": (
        {
            "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 1024, "d_ff": 65536,
            "d_kv": 128, "num_heads": 128, "num_layers": 24, "num_decoder_layers": 24, "vocab_size": 32128,
            "torch_dtype": "bfloat16",
        },
        [],
    ),
}  # fmt: skip


def main() -> None:
    """Print one row per configuration."""
    print(f"{date.today()}, one process each\n")
    print("| model | parameters | operations' MACs | peak (eager) | seconds | process's MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, (config, inputs) in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            source, result = Path(folder) / "config.json", Path(folder) / "out.json"
            source.write_text(json.dumps(config))
            command = [sys.executable, "-m", "memfit", "profile", f"hf:{source}", "-o", str(result)]
            for shape in inputs:
                command += ["--input", shape]
            start = time.perf_counter()
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - start
            if status:
                raise SystemExit(f"{name}: exit status {status}")
            totals = json.loads(result.read_text())["totals"]
        print(
            f"| {name} | {totals['params']:,} | {totals['macs']:,} | {totals['peak_bytes'] / (1 << 20):,.1f} MiB "
            f"| {seconds:.1f} | {usage.ru_maxrss / 1024:.0f} |"
        )


if __name__ == "__main__":
    main()
