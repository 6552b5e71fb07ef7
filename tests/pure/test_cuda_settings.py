"""Reading the text that sets PyTorch's CUDA allocator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memfit.errors import UsageError
from memfit.memory.cuda.settings import Settings

MIB = 1 << 20


class TestParse:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", Settings()),
            ("expandable_segments:True", Settings(expandable_segments=True)),
            (" expandable_segments : False ,", Settings()),
            ("max_split_size_mb:128", Settings(max_split_size_bytes=128 * MIB)),
            ("max_split_size_mb:32,max_split_size_mb:64", Settings(max_split_size_bytes=64 * MIB)),
            ("max_non_split_rounding_mb:25", Settings(max_non_split_rounding_bytes=25 * MIB)),
            ("garbage_collection_threshold:0.8", Settings(garbage_collection_threshold=0.8)),
            (
                "max_split_size_mb:11,large_segment_size_mb:11",
                Settings(large_segment_bytes=11 * MIB, max_split_size_bytes=11 * MIB),
            ),
            ("backend:native,pinned_num_register_threads:8,throw_on_cudamalloc_oom:False", Settings()),
            ("pinned_use_background_threads:True,graph_capture_record_stream_reuse:True", Settings()),
            ("per_process_memory_fraction:1.0", Settings()),
        ],
    )
    def test_reads_what_pytorch_reads(self, text: str, expected: Settings) -> None:
        assert Settings.parse(text) == expected

    @pytest.mark.parametrize(
        ("text", "divisions"),
        [
            ("4", "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4"),
            ("[256:1,512:2,1024:4,>:8]", "1 1 1 1 1 1 1 1 1 2 4 8 8 8 8 8"),
            ("[64:8,256:4,1024:4,>:1]", "8 8 8 8 8 8 8 0 4 0 4 1 1 1 1 1"),
            ("[>:8]", "0 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8"),
            ("[1:2]", "2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"),
            ("[131072:2,>:4]", "2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2"),
            ("[1:0,2:4]", "0 4 0 0 0 0 0 0 0 0 0 0 0 0 0 0"),
            ("[512:2,256:4]", "2 2 2 2 2 2 2 2 4 2 0 0 0 0 0 0"),
            ("[]", "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"),
        ],
    )
    def test_divisions_are_those_of_pytorch(self, text: str, divisions: str) -> None:
        """The right column is what `AcceleratorAllocatorConfig::roundup_power2_divisions()` of v2.13.0 gave."""
        parsed = Settings.parse(f"roundup_power2_divisions:{text}").divisions()
        assert parsed == tuple(map(int, divisions.split()))

    def test_a_fraction_is_one_of_the_device(self) -> None:
        parsed = Settings.parse("per_process_memory_fraction:0.7", device_bytes=1001, capacity_bytes=900)
        assert (parsed.allowed_bytes, parsed.capacity_bytes, parsed.device_bytes) == (700, 900, 1001)

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("expandable_segment:True", ["no setting 'expandable_segment'", "did you mean expandable_segments?"]),
            ("foo:1", ["no setting 'foo'", "its settings are large_segment_size_mb, "]),
            ("expandable_segments:true", ["expandable_segments", "'true'", "True or False"]),
            ("expandable_segments", ["cannot be read", "at 'expandable_segments'", "key:value"]),
            (",expandable_segments:True", ["cannot be read", "at ',expandable_segments"]),
            ("max_split_size_mb:32 expandable_segments:True", ["cannot be read", "at 'max_split_size_mb:32exp"]),
            ("max_split_size_mb:19", ["max_split_size_bytes", "19922944", "at least the large segment's 20971520"]),
            ("max_split_size_mb:20,large_segment_size_mb:64", ["max_split_size_bytes", "67108864"]),
            ("max_non_split_rounding_mb:19", ["max_non_split_rounding_bytes", "20971520"]),
            ("max_split_size_mb:-1", ["max_split_size_mb", "'-1'", "whole number"]),
            ("max_split_size_mb:32x", ["'32x'", "whole number"]),
            ("large_segment_size_mb:10", ["large_segment_bytes", "more than 10"]),
            ("garbage_collection_threshold:1.0", ["'1.0'", "between 0.0 and 1.0"]),
            ("garbage_collection_threshold:0", ["'0'", "between 0.0 and 1.0"]),
            ("garbage_collection_threshold:much", ["'much'", "such as 0.8"]),
            ("roundup_power2_divisions:3", ["roundup_power2_divisions", "3", "power of two"]),
            ("roundup_power2_divisions:0", ["'0'", "power of two"]),
            ("roundup_power2_divisions:[256:3]", ["power of two"]),
            ("roundup_power2_divisions:[255:2]", ["'[255:2]'", "bounds are powers of two"]),
            ("per_process_memory_fraction:0.5", ["'0.5'", "how much memory the device has"]),
            ("per_process_memory_fraction:1.5", ["'1.5'", "from 0.0 to 1.0"]),
            ("backend:cudaMallocAsync", ["'cudaMallocAsync'", "native allocator"]),
            ("backend:other", ["'other'", "native and cudaMallocAsync"]),
            ("throw_on_cudamalloc_oom:True", ["'True'", "not simulated"]),
        ],
    )
    def test_says_what_is_wrong(self, text: str, parts: list[str]) -> None:
        with pytest.raises(UsageError) as caught:
            Settings.parse(text)
        for part in (*parts, "received:", "to do:"):
            assert part in str(caught.value)

    @pytest.mark.parametrize("field", ["allowed_bytes", "capacity_bytes", "device_bytes"])
    def test_sizes_are_not_negative(self, field: str) -> None:
        with pytest.raises(UsageError, match=field):
            replace(Settings(), **{field: -1})
