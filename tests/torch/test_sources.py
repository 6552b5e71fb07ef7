"""Every kind of source, and every kind of bad one: an error says what, where, what was received and what to do."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memfit.capture.entry import capture
from memfit.capture.phantom import is_phantom
from memfit.capture.sources import load
from memfit.capture.sources.build import BuildMode, build
from memfit.capture.sources.inputs import InputSpec, parse_input, resolve
from memfit.errors import CaptureError, DataDependentError, MemfitError, SourceError, UnsupportedOp, UsageError
from memfit.graph.io import save

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 500,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def check(error: MemfitError, *, what: str, where: str = "", received: str = "", todo: str = "") -> None:
    """The four parts of a message, each by a piece of its text; and the command's exit code."""
    assert what in error.what
    assert where in (error.where or "")
    assert received in (error.received or "")
    assert todo in (error.todo or "")
    assert error.exit_code == 2


# -- good sources -------------------------------------------------------------------------------------------------


def test_torchvision_builds_without_weights() -> None:
    source = load("torchvision:resnet18")
    assert source.model is not None
    assert sum(p.numel() for p in source.model.parameters()) == 11_689_512
    assert all(is_phantom(p) for p in source.model.parameters())
    assert source.specs == (InputSpec((1, 3, 224, 224), "float32", "input"),)
    assert source.example().args[0].shape == (1, 3, 224, 224)
    assert source.example().names == ("input",)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("inception_v3", [(1, 3, 299, 299)]),
        ("vit_h_14", [(1, 3, 224, 224)]),
        ("fcn_resnet50", [(1, 3, 520, 520)]),
        ("r3d_18", [(1, 3, 16, 112, 112)]),
        ("raft_small", [(1, 3, 520, 960)] * 2),
        ("ssd300_vgg16", [(1, 3, 300, 300)]),
    ],
)
def test_torchvision_states_its_own_sizes(name: str, shapes: list[tuple[int, ...]]) -> None:
    assert [spec.shape for spec in load(f"torchvision:{name}").specs] == shapes


def test_arguments_go_to_the_constructor_and_weights_never_do() -> None:
    source = load("torchvision:resnet18", args={"num_classes": "10", "weights": "DEFAULT"})
    assert isinstance(source.model.fc, nn.Linear)  # type: ignore[union-attr]
    assert source.model.fc.out_features == 10  # type: ignore[union-attr]
    assert is_phantom(source.model.fc.weight)  # type: ignore[union-attr]


def test_detectors_take_a_list_and_train_on_targets() -> None:
    source = load("torchvision:maskrcnn_resnet50_fpn")
    example = source.example(["2x3x320x320"], training=True)
    images, targets = example.args
    assert [tuple(i.shape) for i in images] == [(3, 320, 320)] * 2
    assert set(targets[0]) == {"boxes", "labels", "masks"}
    assert tuple(targets[1]["masks"].shape[1:]) == (320, 320)
    assert example.names[:3] == ("images.0", "images.1", "input1.0.boxes")
    assert example.loss is not None


def test_timm_by_name_and_by_tag() -> None:
    source = load("timm:resnet18.a1_in1k", args={"pretrained": True, "num_classes": 7, "in_chans": 1})
    assert source.specs == (InputSpec((1, 1, 224, 224), "float32", "input"),)
    assert source.model is not None
    assert all(is_phantom(p) for p in source.model.parameters())


def test_dtype_is_that_of_weights_and_inputs() -> None:
    source = load("torchvision:resnet18", dtype="bf16")
    assert source.model is not None
    assert {p.dtype for p in source.model.parameters()} == {torch.bfloat16}
    assert source.example().args[0].dtype is torch.bfloat16


def test_transformers_from_a_file_or_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "config.json", json.dumps(LLAMA))
    for place in (path, str(tmp_path)):
        source = load(f"hf:{place}")
        assert type(source.model).__name__ == "LlamaForCausalLM"
        assert source.specs == (InputSpec((1, 512), "int64", "input_ids"),)
        assert {p.dtype for p in source.model.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert {p.dtype for p in load(f"hf:{path}", dtype="fp32").model.parameters()} == {torch.float32}  # type: ignore[union-attr]
    assert load(f"hf:{path}", args={"num_hidden_layers": 3}).model.config.num_hidden_layers == 3  # type: ignore[union-attr]
    assert "HF_HUB_OFFLINE" not in os.environ


def test_transformers_falls_back_to_the_model_type(tmp_path: Path) -> None:
    path = write(tmp_path, "bert.json", json.dumps({**LLAMA, "model_type": "bert", "architectures": ["NoSuchModel"]}))
    assert type(load(f"hf:{path}").model).__name__ == "BertForMaskedLM"


def test_a_large_config_is_built_without_its_weights(tmp_path: Path) -> None:
    large = {"hidden_size": 8192, "num_hidden_layers": 20, "num_attention_heads": 64, "intermediate_size": 28672}
    source = load(f"hf:{write(tmp_path, 'config.json', json.dumps({**LLAMA, **large}))}")
    assert source.model is not None
    assert sum(p.numel() for p in source.model.parameters()) > 15e9


def test_an_encoder_decoder_takes_two_inputs_and_trains_on_labels(tmp_path: Path) -> None:
    config = {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 64, "d_ff": 128,
        "num_layers": 1, "num_heads": 4, "d_kv": 16, "vocab_size": 500, "is_encoder_decoder": True,
    }  # fmt: skip
    source = load(f"hf:{write(tmp_path, 'config.json', json.dumps(config))}")
    example = source.example(["2x64", "decoder_input_ids=2x32"], training=True)
    assert {name: tuple(t.shape) for name, t in example.kwargs.items() if isinstance(t, torch.Tensor)} == {
        "input_ids": (2, 64),
        "decoder_input_ids": (2, 32),
        "labels": (2, 32),
    }
    assert example.kwargs["use_cache"] is False
    assert {t.dtype for t in example.kwargs.values() if isinstance(t, torch.Tensor)} == {torch.int64}


FILES = {
    "module only": ("return Net()", ()),
    "one tensor": ("return Net(), torch.rand(2, 3)", (("x", (2, 3)),)),
    "tuple": ("return Net(), (torch.rand(2, 3), torch.rand(2, 3))", (("x", (2, 3)), ("y", (2, 3)))),
    "list": ("return Net(), [torch.rand(2, 3)]", (("x", (2, 3)),)),
    "dict": ("return Net(), {'y': torch.rand(2, 3), 'x': torch.rand(4, 3)}", (("y", (2, 3)), ("x", (4, 3)))),
}
NET = """
import torch
from torch import nn
from helper import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, WIDTH)

    def forward(self, x, y=None):
        return self.linear(x) + (0 if y is None else y.sum())

def build(*, width=None):
    {body}
"""


@pytest.mark.parametrize("case", FILES)
def test_a_file_may_return_a_module_and_its_inputs(tmp_path: Path, case: str) -> None:
    body, expected = FILES[case]
    write(tmp_path, "helper.py", "WIDTH = 5\n")
    file = write(tmp_path, "net.py", NET.format(body=body))
    source = load(f"{file}:build")
    sys.modules.pop("helper", None)
    assert source.model is not None
    assert is_phantom(source.model.linear.weight)  # type: ignore[union-attr, arg-type]
    assert tuple((s.name, s.shape) for s in source.specs) == expected
    assert str(tmp_path) not in sys.path
    graph = capture(f"{file}:build", None if expected else "2x3")
    sys.modules.pop("helper", None)
    assert [op.kind for op in graph.ops if op.macs] == ["linear"]


def test_a_file_may_name_a_class_and_take_arguments(tmp_path: Path) -> None:
    write(tmp_path, "helper.py", "WIDTH = 5\n")
    file = write(tmp_path, "net.py", NET.format(body="return Net()"))
    assert type(load(f"{file}:Net").model).__name__ == "Net"
    assert load(f"{file}:build", args={"width": 3}).model is not None
    sys.modules.pop("helper", None)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.norm(self.conv(x)))


class Exportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.more = nn.ModuleList([Block()])
        self.head = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2)
        self.tied.weight = self.head.weight
        self.register_buffer("scale", torch.ones(4), persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.blocks(x)
        for block in self.more:
            x = block(x)
        with torch.no_grad():
            mean = x.mean((2, 3))
        left, right = (x.mean((2, 3)) * self.scale + mean).chunk(2, 1)
        x = torch.cat([right, left], 1)
        return self.head(x), self.tied(x)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, str]:
    import warnings

    path = str(tmp_path_factory.mktemp("exported") / "model.pt2")
    model = Exportable().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(model, (torch.rand(2, 4, 8, 8),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    return model, path


def test_an_exported_program_is_the_model_itself(exported: tuple[nn.Module, str]) -> None:
    model, path = exported
    own, graph = capture(model, "2x4x8x8"), capture(path)
    kinds = [(op.kind, op.macs) for op in own.ops if op.kind != "t"]
    assert [(op.kind, op.macs) for op in graph.ops if op.kind != "t"] == kinds
    assert [graph.scopes[op.scope].path for op in graph.ops if op.macs] == [
        own.scopes[op.scope].path for op in own.ops if op.macs
    ]
    containers = [(s.path, s.class_name) for s in graph.scopes if s.container]
    assert containers == [("blocks", "Sequential"), ("more", "ModuleList")]
    assert max(graph.live_bytes) == max(own.live_bytes)
    assert sum(t.nbytes for t in graph.parameters()) == sum(t.nbytes for t in own.parameters())
    assert graph.tensors[graph.inputs[0]].name == "x"


def test_an_exported_program_takes_another_batch_where_it_may(exported: tuple[nn.Module, str]) -> None:
    _, path = exported
    graph = capture(path, batch=16)
    assert graph.tensors[graph.outputs[0]].shape == (16, 2)
    with pytest.raises(CaptureError) as caught:
        capture(path, "2x4x9x9")
    check(caught.value, what="exported for input x of shape Nx4x8x8, not 2x4x9x9", received="2x4x9x9")


def test_a_saved_graph(tmp_path: Path) -> None:
    graph = capture(nn.Linear(3, 4), "2x3")
    path = tmp_path / "linear.memfit.json"
    save(graph, path)
    assert load(str(path)).graph == graph
    assert load(str(path)).model is None


def test_a_saved_graph_loads_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "linear.memfit.json"
    save(capture(nn.Linear(3, 4), "2x3"), path)
    code = f"import sys; from memfit.capture.sources import load; load({str(path)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- bad sources --------------------------------------------------------------------------------------------------

BAD_NAMES = [
    ("torchvision:resnet51", SourceError, "no model of that name", "torchvision:resnet51", "resnet51", "resnet50"),
    ("timm:resnet51", SourceError, "no model of that name", "timm:resnet51", "resnet51", "resnet50"),
    ("torchvision:quantized_resnet50", SourceError, "quantized", "torchvision:", "quantized_", "torchvision:resnet50"),
    ("torchvision:", UsageError, "names no model", "torchvision:", "torchvision:", "torchvision:NAME"),
    ("hf:nowhere/config.json", SourceError, "no such configuration", "hf:nowhere", "nowhere", "downloads nothing"),
    ("nowhere.pt2", SourceError, "no such file", "nowhere.pt2", "nowhere.pt2", "path"),
    ("nowhere.memfit.json", SourceError, "no such file", "nowhere.memfit.json", "nowhere", "path"),
    ("nowhere.py:build", SourceError, "no such file", "nowhere.py", "nowhere.py", "path"),
    ("net.py", UsageError, "not what to build", "net.py", "net.py", "net.py:build"),
    ("resnet50", UsageError, "not a model source", "SOURCE", "resnet50", "torchvision:NAME"),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD_NAMES, ids=[case[0] for case in BAD_NAMES])
def test_a_bad_name(case: tuple[Any, ...]) -> None:
    source, kind, what, where, received, todo = case
    with pytest.raises(kind) as caught:
        load(source)
    check(caught.value, what=what, where=where, received=received, todo=todo)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from memfit.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(MissingExtra) as caught:
        load("timm:resnet18")
    check(caught.value, what="needs timm", where="SOURCE", received="timm", todo="pip install 'memfit[zoo]'")


def test_a_constructor_that_raises() -> None:
    with pytest.raises(SourceError) as caught:
        load("torchvision:resnet18", args={"colour": "red"})
    check(
        caught.value,
        what="the constructor failed",
        where="torchvision:resnet18",
        received="unexpected keyword argument 'colour'",
        todo="--arg",
    )


def test_a_wrong_dtype() -> None:
    with pytest.raises(UsageError) as caught:
        load("torchvision:resnet18", dtype="int64")
    check(caught.value, what="cannot have this dtype", where="--dtype", received="int64", todo="bf16")


@pytest.mark.parametrize(
    ("text", "what", "received"),
    [
        ("{", "cannot be read", ""),
        ("[]", "no model_type", "list"),
        ('{"hidden_size": 3}', "no model_type", "hidden_size"),
        ('{"model_type": "lama"}', "no such model_type", "lama"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "", ""),
    ],
)
def test_a_bad_configuration(tmp_path: Path, text: str, what: str, received: str) -> None:
    path = write(tmp_path, "config.json", text)
    with pytest.raises(SourceError) as caught:
        load(f"hf:{path}")
    check(caught.value, what=what, where="config.json", received=received, todo=" ")


FAULTS = [
    ("def build(:\n    pass\n", "imported", "SyntaxError", "net.py:1"),
    (
        "x = 1\nimport no_such_module_here\n",
        "imported",
        "no_such_module_here",
        "net.py:2: import no_such_module_here",
    ),
    (
        "def build():\n    raise ValueError('too narrow')\n",
        "built the model",
        "ValueError: too narrow",
        "net.py:2: raise ValueError",
    ),
    (
        "import torch\ndef build():\n    return torch.nn.Linear(-1, 2, 3, 4, 5, 6)\n",
        "built the model",
        "TypeError",
        "net.py:3: return",
    ),
    ("def build():\n    return 3\n", "does not return a module", "int", "net.py"),
    ("def make():\n    return 3\n", "no such name", "build", "net.py"),
    ("build = 3\n", "neither a module", "int", "net.py"),
]


@pytest.mark.parametrize(("text", "what", "received", "where"), FAULTS)
def test_a_file_at_fault_names_its_line(tmp_path: Path, text: str, what: str, received: str, where: str) -> None:
    file = write(tmp_path, "net.py", text)
    with pytest.raises(SourceError) as caught:
        load(f"{file}:build")
    check(caught.value, what=what, received=received, where=where, todo=" ")
    assert str(tmp_path) not in sys.path


def test_a_file_without_inputs_asks_for_them(tmp_path: Path) -> None:
    file = write(tmp_path, "net.py", "import torch\ndef build():\n    return torch.nn.Linear(2, 3)\n")
    with pytest.raises(UsageError) as caught:
        capture(f"{file}:build")
    check(caught.value, what="inputs of this model are not known", where="net.py:build", todo="--input")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def rewrite(path: str, target: Path, change: Any) -> str:
    """Copy an archive, with `change(name, content)` deciding each member's bytes."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return str(target)


def test_nothing_in_an_exported_program_is_executed(exported: tuple[nn.Module, str], tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    trap = pickle.dumps(Trap(mark))

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("sample_inputs/model.pt"):
            return trap
        if name.endswith("models/model.json"):
            evil = f"__import__('pathlib').Path({str(mark)!r}).touch()"
            program = json.loads(content)
            for value in program["graph_module"]["graph"]["tensor_values"].values():
                for size in value["sizes"]:
                    if "as_expr" in size:
                        size["as_expr"]["expr_str"] = evil
            program["graph_module"]["module_call_graph"] = evil
            return json.dumps(program).encode()
        return content

    graph = capture(rewrite(exported[1], tmp_path / "trap.pt2", change))
    assert len(graph.ops) > 10
    assert not mark.exists()
    pickle.loads(trap)
    assert mark.exists(), "the trap itself works"


def edited(exported: tuple[nn.Module, str], target: Path, edit: Any) -> str:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        edit(program["graph_module"])
        return json.dumps(program).encode()

    return rewrite(exported[1], target, change)


@pytest.mark.parametrize("target", ["torch.load", "os.system", "torch.ops.aten.from_file.default", "torch.ops.x.y.z"])
def test_an_exported_program_may_only_call_operators(
    exported: tuple[nn.Module, str], tmp_path: Path, target: str
) -> None:
    def edit(program: Any) -> None:
        program["graph"]["nodes"][0]["target"] = target

    with pytest.raises(UnsupportedOp) as caught:
        load(edited(exported, tmp_path / "odd.pt2", edit))
    check(caught.value, what="an operation", where="odd.pt2: blocks.0.conv", received=target, todo="FILE.py:CALLABLE")


def test_an_exported_program_with_a_pickled_object(exported: tuple[nn.Module, str], tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("constants_config.json"):
            entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
            return json.dumps({"config": {"thing": entry}}).encode()
        return content

    path = rewrite(exported[1], tmp_path / "object.pt2", change)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/constants/opaque_obj_0", pickle.dumps(Trap(mark)))
    with pytest.raises(SourceError) as caught:
        load(path)
    check(caught.value, what="pickled object", where="object.pt2", received="thing", todo="export")
    assert not mark.exists()


def archive_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "what", "received"),
    [
        (b"not an archive", "not a program saved by torch.export.save", "b'not an a'"),
        (b"", "not a program saved by torch.export.save", "b''"),
        (pickle.dumps({"a": 1}), "not a program saved by torch.export.save", "begins with"),
        (archive_of({"archive/data.pkl": b"x"}), "not a program saved by", "data.pkl"),
        (archive_of({"m/data/aotinductor/model/x.so": b"x"}), "compiled code", "aotinductor"),
        (archive_of({"m/models/model.json": b"{"}), "cannot be read", "damaged"),
        (archive_of({"m/models/model.json": b"{}"}), "cannot be read", "damaged"),
    ],
)
def test_a_file_that_is_no_exported_program(tmp_path: Path, content: bytes, what: str, received: str) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        load(str(path))
    check(caught.value, what=what, where="model.pt2", received=received, todo="export")


def test_options_that_a_finished_model_cannot_take(exported: tuple[nn.Module, str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(exported[1], args={"width": 3})
    check(caught.value, what="--arg does not apply", where="model.pt2", received="--arg width=3", todo="leave out")


def test_formats_of_other_readers(tmp_path: Path) -> None:
    path = write(tmp_path, "model.onnx", "x")
    with pytest.raises(SourceError, match=r"not an \.onnx file, or it is damaged"):
        load(path)
    path = write(tmp_path, "notes.txt", "x")
    with pytest.raises(SourceError, match="not a model that memfit reads"):
        load(path)


# -- inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1xQ", "", "x3", "1x3:", "=1x3", "1x-3", "1 3", "ids=", "1x3:int64:int64"])
def test_text_that_is_no_shape(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_input(text)
    check(caught.value, what="not an input shape", where="--input", received=repr(text), todo="1x3x224x224")


def test_text_with_an_unknown_dtype() -> None:
    with pytest.raises(UsageError) as caught:
        parse_input("1x3:int65")
    check(caught.value, what="not a dtype", where="--input 1x3:int65", received="int65", todo="int64")


def test_inputs_replace_the_models_own() -> None:
    own = [InputSpec((1, 8), "int64", "ids"), InputSpec((1, 4), "float32", "mask")]
    assert [str(s) for s in resolve(own, [parse_input("2x16")])] == ["ids=2x16:int64", "mask=2x4"]
    assert [str(s) for s in resolve(own, [parse_input("mask=1x5:bool")])] == ["ids=1x8:int64", "mask=1x5:bool"]
    assert [str(s) for s in resolve(own, [parse_input("extra=1x2")], batch=3)][2] == "extra=3x2"
    with pytest.raises(UsageError) as caught:
        resolve(own, [parse_input("1x2")] * 3)
    check(caught.value, what="more inputs", where="--input", received="3 inputs", todo="ids=1x8:int64")
    with pytest.raises(UsageError) as caught:
        resolve(own, [], batch=0)
    check(caught.value, what="at least 1", where="--batch", received="0")


# -- building -----------------------------------------------------------------------------------------------------


def test_a_constructor_computes_on_real_numbers_where_it_can() -> None:
    def constructor() -> list[Any]:
        widths = (torch.arange(4, dtype=torch.float32) * 24 + 8).round().int().tolist()
        return [nn.Linear(w, 1 << 30) for w in widths] + [torch.zeros(1 << 40)]

    *layers, zeros = build(constructor)
    assert [layer.in_features for layer in layers] == [8, 32, 56, 80]
    assert all(is_phantom(layer.weight) for layer in layers)
    assert is_phantom(zeros)


def test_initialisers_write_nothing() -> None:
    with BuildMode():
        weight = torch.empty(4, 4)
        for name in ("normal_", "trunc_normal_", "kaiming_uniform_", "orthogonal_", "dirac_", "eye_", "zeros_"):
            initialise = getattr(nn.init, name)
            assert is_phantom(initialise(torch.empty(4, 4, 3) if name == "dirac_" else weight))
        real = torch.zeros(3)
        real.copy_(torch.rand(3))
        assert is_phantom(real), "its values are unknown now"


def test_a_constructor_that_asks_for_a_weights_value(tmp_path: Path) -> None:
    text = (
        "import torch\ndef build():\n    if torch.rand(2).sum() > 1:\n        pass\n    return torch.nn.Linear(2, 3)\n"
    )
    file = write(tmp_path, "net.py", text)
    with pytest.raises(DataDependentError) as caught:
        load(f"{file}:build")
    check(
        caught.value, what="asks for the values", where="net.py:3: if torch.rand(2)", received="scalar", todo="Python"
    )


# -- sizes and values that depend on data -------------------------------------------------------------------------


class Selecting(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x[x > 0], torch.nonzero(x), torch.masked_select(x, x < 0), torch.unique(x)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if torch.arange(4).sum() > 5 else x


def test_sizes_take_their_worst_case_and_say_so() -> None:
    graph = capture(Selecting(), "2x5")
    assert [graph.tensors[o].shape for o in graph.outputs] == [(10,), (10, 2), (10,), (10,)]
    assert len([n for n in graph.notes if "upper bounds" in n]) == 4


def test_a_branch_on_values_is_an_error_that_names_the_line() -> None:
    with pytest.raises(DataDependentError) as caught:
        capture(Branching(), "2x5")
    check(caught.value, what="control flow", where="if x.sum() > 0:", received="bool", todo="torch.where")
    assert "test_sources.py:" in (caught.value.where or "")


@pytest.mark.parametrize("method", ["tolist", "numpy"])
def test_reading_a_tensor_without_bytes_is_an_error(method: str) -> None:
    from memfit.capture.worst_case import guarded_reads

    with BuildMode():
        weight = torch.rand(3)
        assert getattr(torch.arange(3), method)() is not None
        with pytest.raises(DataDependentError) as caught:
            getattr(weight, method)()
    check(caught.value, what="values", where="getattr(weight, method)()", received=f"Tensor.{method}", todo="where")
    assert method not in vars(torch.Tensor)
    with guarded_reads(), guarded_reads(), pytest.raises(DataDependentError):
        getattr(weight, method)()
    assert method not in vars(torch.Tensor)


def test_a_branch_on_constants_is_taken() -> None:
    assert capture(Constant(), "2x5").ops[-1].kind == "add"


def test_a_detectors_boxes_are_divided_over_the_pyramid() -> None:
    graph = capture("torchvision:fasterrcnn_resnet50_fpn", "1x3x320x320")
    aligned = [graph.tensors[op.outputs[0]].shape[0] for op in graph.ops if "roi_align" in op.target]
    assert aligned == [1000, 0, 0, 0]
    assert any("nms" in note for note in graph.notes)


# -- torchvision's operators --------------------------------------------------------------------------------------


def test_schemas_let_torchvision_import_and_run() -> None:
    code = """
import sys
from memfit.capture.shim import SCHEMAS, define_missing_torchvision_schemas, import_torchvision
assert len(SCHEMAS) == 13
first, second = define_missing_torchvision_schemas(), define_missing_torchvision_schemas()
assert not second
torchvision = import_torchvision()
assert "torch._dynamo" not in sys.modules
import torch
for name in SCHEMAS:
    assert hasattr(torch.ops.torchvision, name), name
assert torchvision.models.mobilenet_v2().eval()(torch.rand(1, 3, 32, 32)).shape == (1, 1000)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_a_capture_does_not_need_the_compiler() -> None:
    code = """
import sys, torch
from memfit.capture.dynamo import without_dynamo
x = torch.empty(4, device="meta")
with without_dynamo():
    torch.nn.functional.gelu(x)
    assert type(sys.modules["torch._dynamo"]).__name__ == "StandIn"
assert "torch._dynamo" not in sys.modules
with without_dynamo():
    import torch._dynamo.utils
    assert sys.modules["torch._dynamo"].__file__
double = torch.compile(lambda x: torch.nn.functional.gelu(x) * 2, backend="eager")
assert torch.equal(double(torch.ones(3)), torch.nn.functional.gelu(torch.ones(3)) * 2)
with without_dynamo():
    assert sys.modules["torch._dynamo"].__file__
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_region_operators_have_shapes_and_gradients() -> None:
    from memfit.capture.shim import import_torchvision, operators_present

    torchvision = import_torchvision()
    x = torch.empty(2, 8, 16, 16, device="meta", requires_grad=True)
    rois = torch.empty(5, 5, device="meta")
    for operator, channels in (("roi_align", 8), ("roi_pool", 8), ("ps_roi_align", 2), ("ps_roi_pool", 2)):
        x.grad = None
        with operators_present():
            pooled = getattr(torchvision.ops, operator)(x, rois, 2)
        assert pooled.shape == (5, channels, 2, 2)
        pooled.sum().backward()
        assert x.grad is not None
    layer = torchvision.ops.DeformConv2d(8, 4, 3).to("meta")
    with operators_present():
        out = layer(x, torch.empty(2, 18, 14, 14, device="meta"), torch.empty(2, 9, 14, 14, device="meta"))
    out.sum().backward()
    assert out.shape == (2, 4, 14, 14)
    assert layer.weight.grad.shape == layer.weight.shape
