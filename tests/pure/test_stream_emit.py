"""Patched files: the same tensors, byte for byte in the arena, and what the runtime needs for them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import tflite_models as models
from tflite_models import SAME, VALID, Net
from tflm_runtime import need_runtime

import memfit
from memfit.cli.main import main
from memfit.errors import InternalError, OutputError, SourceError, UsageError
from memfit.formats.tflite import TfliteModel, parse_model, read_model
from memfit.memory.tflm import arena
from memfit.packing import Problem
from memfit.plan.arena import planned_file
from memfit.plan.runtime import Runtime
from memfit.plan.verify import sample_inputs
from memfit.stream.emit.bands import Need, choose, made
from memfit.stream.emit.draft import Draft
from memfit.stream.emit.emit import emit, network_macs, prove
from memfit.stream.emit.lower import lower
from memfit.stream.emit.nodes import JOIN, TURN, WINDOW, Window, fit, network_of
from memfit.stream.emit.patch import Unit, pairs
from memfit.stream.emit.place import blocks, bound, place
from memfit.stream.emit.search import Search, macs_of
from memfit.stream.emit.write import write
from memfit.stream.replay import assert_intact, replay

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"

TARGETS = {
    "mlperf-tiny/vww_96_int8.tflite": (30_624, 70_100),
    "tflite-micro/person_detect.tflite": (27_840, 64_200),
    "tflite-micro/mobilenet_v2_quantized_1x3x224x224.tflite": (258_784, 500_000),
    "mlperf-tiny/pretrainedResnet_quant.tflite": (None, 44_000),
}
"""A height at which the search finds its best, None to search; and bytes of arena that the file needs at most."""


def real(name: str) -> Path:
    path = MODELS / name
    if not path.exists():
        pytest.skip(f"no {path.name} in this checkout's models")
    return path


# -- kernels on bands -------------------------------------------------------------------------------------------------


def outputs(values: list[int], window: Window, padding: int | None = None) -> list[int]:
    """A one-dimensional convolution with weights 1, 2, 3 …; by the window's own padding, or by SAME or VALID."""
    if padding is None:
        count, before = window.outputs, window.before
    else:
        count, before = fit(len(values), window.kernel, window.stride, padding)
    return [
        sum(
            (k + 1) * values[place]
            for k in range(window.kernel)
            if 0 <= (place := i * window.stride - before + k) < len(values)
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(300))
def test_rows_that_count_as_the_images_own_are(seed: int) -> None:
    draw = random.Random(seed)
    length, kernel, stride = draw.randint(3, 14), draw.randint(1, 5), draw.randint(1, 3)
    before = draw.randint(0, kernel - 1)
    count = (length + before + draw.randint(0, kernel - 1) - kernel) // stride + 1
    if count < 1:
        return
    window = Window(kernel, stride, before, length, count)
    image = [draw.randint(1, 10**6) for _ in range(length)]
    wanted = outputs(image, window)
    start = draw.randrange(length)
    end = draw.randint(start + 1, length + 1)  # one more is a row of junk
    low = draw.randint(start, min(end, length))
    high = draw.randint(low, min(end, length))
    band = [image[i] if low <= i < high else draw.randint(1, 10**6) for i in range(start, end)]
    padding = draw.choice((SAME, VALID))
    found = made(window, padding, (start, end), (low, high))
    got = outputs(band, window, padding)
    if found is not None:
        assert found.outputs == len(got)
        for row in range(found.low, found.high):
            assert got[row - found.start] == wanted[row]


def grown_outputs(values: list[int], window: Window, padding: int, count: int) -> list[int]:
    """A one-dimensional transposed convolution with weights 1, 2, 3 …"""
    before = fit(count, window.kernel, window.stride, padding)[1]
    found = [0] * count
    for i, value in enumerate(values):
        for k in range(window.kernel):
            if 0 <= (place := i * window.stride - before + k) < count:
                found[place] += (k + 1) * value
    return found


@pytest.mark.parametrize("seed", range(200))
def test_rows_that_a_transposed_convolution_makes_right_of_a_band(seed: int) -> None:
    draw = random.Random(seed)
    length, stride, padding = draw.randint(2, 12), draw.randint(1, 3), draw.choice((SAME, VALID))
    kernel = stride + draw.randint(0, 3)
    count = length * stride if padding == SAME else (length - 1) * stride + kernel
    window = Window(kernel, stride, fit(count, kernel, stride, padding)[1], length, count, grows=True)
    image = [draw.randint(1, 10**6) for _ in range(length)]
    wanted = grown_outputs(image, window, padding, count)
    start = draw.randrange(length)
    end = draw.randint(start + 1, length)
    low = draw.randint(start, end)
    high = draw.randint(low, end)
    band = [image[i] if low <= i < high else draw.randint(1, 10**6) for i in range(start, end)]
    found = made(window, padding, (start, end), (low, high))
    assert found is not None
    got = grown_outputs(band, window, padding, found.outputs)
    right = [row for row in range(found.low, found.high) if got[row - found.start] == wanted[row]]
    assert right == list(range(found.low, found.high))
    first = draw.randrange(count)
    last = draw.randint(first + 1, count)
    needed = window.needs(first, last)
    chosen = choose(window, window, Need(first, last, first, last), junk=False)
    assert chosen is not None
    assert (chosen.need.low, chosen.need.high) == needed
    rows = made(window, chosen.padding, chosen.need[2:4], needed)
    assert rows is not None
    assert rows.low <= first
    assert rows.high >= last


@pytest.mark.parametrize("seed", range(100))
def test_the_band_that_is_chosen_gives_what_is_needed(seed: int) -> None:
    draw = random.Random(seed)
    kernel, stride = draw.choice((1, 2, 3, 5)), draw.choice((1, 2))
    length = draw.randint(kernel + 2, 20)
    same = fit(length, kernel, stride, SAME)
    window = Window(kernel, stride, same[1], length, same[0])
    low = draw.randrange(window.outputs)
    high = draw.randint(low + 1, window.outputs)
    found = choose(window, window, Need(low, high, low, high), junk=True)
    assert found is not None
    need = found.need
    rows = made(window, found.padding, (need.start, need.end + need.junk_row), (need.low, need.high))
    assert rows is not None
    assert rows.low <= low
    assert rows.high >= high


def test_a_stripe_of_pytorchs_stride_2_by_hand() -> None:
    """56 rows from 112 with padding (1, 1): rows 4 to 7 read rows 7 to 15, and SAME fits on rows 7 to 16."""
    window = Window(3, 2, 1, 112, 56)
    found = choose(window, window, Need(4, 8, 4, 8), junk=True)
    assert found == (SAME, Need(7, 16, 7, 17, junk_row=False, junk_column=True))
    last = choose(window, window, Need(52, 56, 52, 56), junk=True)
    assert last == (SAME, Need(103, 112, 103, 112, junk_row=True, junk_column=True))


# -- nodes ------------------------------------------------------------------------------------------------------------


def test_a_padding_belongs_to_its_convolution_only_where_it_adds_nothing() -> None:
    net = Net()
    x = net.input(1, 8, 8, 4)
    first = net.conv(net.pad(x), 4, padding=VALID)
    padded = net.pad(first)
    second = net.conv(padded, 4, padding=VALID)
    third = net.conv(net.pad(second, value=True), 4, padding=VALID)
    joined = net.add(net.conv(padded, 4, padding=VALID), second)
    found = network_of(parse_model(net.build(joined, third)))
    names = [(node.operator.name, node.operators) for node in found.nodes]
    assert names[:3] == [("CONV_2D", (0, 1)), ("PAD", (2,)), ("CONV_2D", (3,))]
    assert found.nodes[0].rows == Window(3, 1, 1, 8, 8)
    assert [node.kind for node in found.nodes] == [WINDOW, None, WINDOW, None, WINDOW, WINDOW, JOIN]
    assert "patches of it are not made" in str(found.nodes[1].reason)


def test_an_image_with_its_channels_first_is_cut_before_it_is_turned() -> None:
    net = Net()
    x = net.transpose(net.input(1, 3, 12, 10), 0, 2, 3, 1)
    found = network_of(parse_model(net.build(net.conv(x, 4))))
    assert found.nodes[0].kind == TURN
    assert found.images[0][:3] == (12, 10, 3)


# -- any network, any cuts --------------------------------------------------------------------------------------------


def drawn_step(net: Net, x: int, draw: random.Random) -> int:
    activation, stride, own = draw.choice((None, "relu", "relu6")), draw.choice((1, 1, 2)), net.shape(x)[3]
    steps = {
        "point": lambda: net.conv(x, draw.choice((4, 8, 12, 16)), kernel=1, activation=activation),
        "same": lambda: net.conv(x, draw.choice((4, 8, 12)), stride=stride, activation=activation),
        "two": lambda: net.conv(x, 6, kernel=2, stride=stride),
        "block": lambda: net.depthwise(net.conv(x, 12, kernel=1, activation="relu6"), draw.choice((3, 5)), 2),
        "padded block": lambda: net.depthwise(net.pad(net.conv(x, 8, kernel=1)), 3, 2, padding=VALID),
        "skip": lambda: net.conv(x, 6, kernel=1, stride=2),
        "valid": lambda: net.conv(x, 6, stride=stride, padding=VALID),
        "depthwise": lambda: net.depthwise(x, draw.choice((3, 5)), stride, activation=activation),
        "padded": lambda: net.conv(net.pad(x), draw.choice((4, 8)), stride=stride, padding=VALID),
        "padded depthwise": lambda: net.depthwise(net.pad(x, draw.choice((1, 1, 2))), 3, stride, padding=VALID),
        "mean": lambda: net.pool(x, padding=draw.choice((SAME, VALID))),
        "most": lambda: net.pool(x, "MAX", 3, draw.choice((1, 2)), draw.choice((SAME, VALID))),
        "relu": lambda: net.unary("RELU", x) if net.type == "INT8" else x,
        "residual": lambda: net.add(x, net.conv(net.conv(x, 8, kernel=1, activation="relu"), own)),
        "dense": lambda: net.concat(x, net.conv(x, 8)),
        "excite": lambda: net.binary("MUL", x, net.conv(net.reduce("MEAN", x, keep=True), own, kernel=1)),
        "hourglass": lambda: net.concat(x, grown(net, net.conv(net.pool(x, "MAX"), 8), x)),
    }
    return steps[draw.choice(sorted(steps))]()


def grown(net: Net, low: int, like: int) -> int:
    """Bring an image to another one's size, where twice its own is it."""
    if tuple(2 * n for n in net.shape(low)[1:3]) != net.shape(like)[1:3]:
        return net.conv(like, 4, kernel=1)
    return net.transpose_conv(low, 4, kernel=net.shape(low)[1] % 3 + 2)


def drawn_net(seed: int) -> TfliteModel:
    """A network of what patches are made of, and of some operators that they are not."""
    draw = random.Random(seed)
    net = Net(draw.choice(("INT8", "INT8", "INT16", "FLOAT32")), seed)
    height, width, channels = draw.randint(9, 24), draw.randint(7, 20), draw.choice((1, 3, 4, 8, 16))
    if draw.random() < 0.25:
        x = net.transpose(net.input(1, channels, height, width), 0, 2, 3, 1)
    else:
        x = net.input(1, height, width, channels, type=draw.choice((None, None, None, "FLOAT32")))
        if net.tensors[x].type != net.type:
            x = net.quantize(x, net.type)
    for _ in range(draw.randint(3, 9)):
        if min(net.shape(x)[1:3]) >= 6:
            x = drawn_step(net, x, draw)
    if draw.random() < 0.5:
        x = net.softmax(net.linear(net.reduce("MEAN", x), 4))
    net.signature = draw.random() < 0.3
    return parse_model(net.build(x), f"drawn{seed}.tflite")


def drawn_units(search: Search, draw: random.Random) -> list[Unit]:
    """Any stretches, cut anywhere."""
    units: list[Unit] = []
    at = 0
    while at < search.count:
        ways = [stretch for stretch in search.stretches if stretch.begin == at]
        unit = Unit(at, at + 1, (), draw.random() < 0.5)
        if ways:
            way = draw.choice(ways)
            height = search.network.images[way.output].height
            count = draw.randint(1, min(height, draw.choice((2, 3, 5, 14))))
            cuts = (0, *sorted(draw.sample(range(1, height), count - 1)), height)
            if all(way.cost(low, high, upward=False) for low, high in pairwise(cuts)):
                unit = Unit(at, way.end, cuts, draw.random() < 0.5, way.groups)
        units.append(unit)
        at = unit.end
    return units


def drafted(seed: int) -> tuple[TfliteModel, Draft]:
    network = network_of(drawn_net(seed))
    return network.model, lower(network, drawn_units(Search(network), random.Random(seed)))


@pytest.mark.parametrize("seed", range(60))
def test_any_cuts_of_any_network_leave_every_tensor_as_it_was(seed: int) -> None:
    model, draft = drafted(seed)
    places = place(draft, 3 * bound(draft))
    assert places.failed == ()
    written = write(draft, places.offsets)
    found = parse_model(written, model.source)
    prove(network_of(model), draft, places.offsets, found)
    assert arena(found).head_bytes <= places.height
    assert written.endswith(bytes(model.data))
    for i, new in enumerate(found.main.tensors):
        assert found.content(new.data) == draft.content(i)
    for old, new in draft.whole.items():
        assert found.content(found.main.tensors[new].data) == model.content(model.main.tensors[old].data)


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_the_runtime_computes_the_same_in_the_arena_that_is_predicted(seed: int, tmp_path: Path) -> None:
    need_runtime()
    model, draft = drafted(seed)
    before, after = tmp_path / "before.tflite", tmp_path / "after.tflite"
    before.write_bytes(model.data)
    after.write_bytes(write(draft, place(draft, 3 * bound(draft)).offsets))
    draws = [sample_inputs(model, number, 0) for number in range(3, 9)]
    needed = arena(read_model(after)).smallest_bytes
    with Runtime() as runtime:
        plain = runtime.outputs(before, draws)
        patched = runtime.outputs(after, draws, arena=needed)
        assert [[y.tobytes() for y in run] for run in plain] == [[y.tobytes() for y in run] for run in patched]
        assert needed - 16 <= runtime.smallest_arena(after, near=needed) <= needed


def test_channels_in_groups_share_out_weights_scales_and_work() -> None:
    net = Net()
    x = net.depthwise(net.conv(net.input(1, 16, 8, 4), 12, kernel=1), stride=2)
    model = parse_model(net.build(x))
    network = network_of(model)
    draft = lower(network, [Unit(0, 2, (0, 4, 8), groups=3)])
    assert macs_of(network, draft) == network_macs(network) + 2 * 8 * 12 * 4 + 1 * 4 * 12 * 9  # rows for garbage
    found = parse_model(write(draft, place(draft, 4 * bound(draft)).offsets))
    filters = [found.main.tensors[o.inputs[1]] for o in found.main.operators if o.name == "CONV_2D"]
    assert [f.shape for f in filters] == [(4, 1, 1, 4)] * 6
    assert [f.buffer for f in filters[:3]] == [f.buffer for f in filters[3:]]
    whole = model.main.tensors[model.main.operators[0].inputs[1]]
    assert b"".join(found.content(f.data) for f in filters[:3]) == model.content(whole.data)
    assert whole.quantization is not None
    scales = [f.quantization.scales for f in filters[:3] if f.quantization is not None]
    assert tuple(scale for part in scales for scale in part) == whole.quantization.scales
    assert any(len(names) > 1 for names in map(set, scales))


def test_channels_are_not_shared_out_where_a_bias_has_fewer() -> None:
    net = Net()
    wide = net.conv(net.input(1, 16, 8, 4), 12, kernel=1)
    model = parse_model(net.build(net.depthwise(wide, stride=2)))
    main = model.main
    odd = main.operators[0].inputs[2]
    tensors = tuple(t._replace(shape=(1,)) if t.index == odd else t for t in main.tensors)
    for found, pairs_of in ((model, 1), (replace(model, subgraphs=(main._replace(tensors=tensors),)), 0)):
        network = network_of(found)
        assert len(list(pairs(network, network.nodes))) == pairs_of


def test_extra_work_is_that_of_rows_computed_twice() -> None:
    """Two patches of 8 rows before a kernel of 3: 9 rows each, one of them garbage, of the two layers' 16."""
    net = Net()
    x = net.conv(net.input(1, 16, 8, 4), 4, kernel=1)
    network = network_of(parse_model(net.build(net.conv(x, 4))))
    draft = lower(network, [Unit(0, 2, (0, 8, 16))])
    assert [draft.tensors[o.outputs[0]].shape[1] for o in draft.operators if o.name == "CONV_2D"] == [9, 9, 9, 9]
    assert macs_of(network, draft) * 16 == network_macs(network) * 18


def test_a_residuals_sum_is_written_over_its_input_which_passes_by_a_unit_before() -> None:
    """The wide value in patches twice: up to its depthwise convolution, and from there to the sum."""
    net = Net()
    x = net.conv(net.input(1, 16, 8, 3), 8)
    y = net.depthwise(net.conv(x, 48, kernel=1))
    z = net.add(x, net.conv(y, 8, kernel=1))
    model = parse_model(net.build(net.conv(z, 8)))
    network = network_of(model)
    draft = lower(network, [Unit(0, 1, ()), Unit(1, 3, (0, 8, 16), True), Unit(3, 5, (0, 8, 16)), Unit(5, 6, (), True)])
    whole, wide = 16 * 8 * 8, 16 * 8 * 48
    assert [len(cut.tensors) for cut in draft.cuts] == [1, 1, 2, 1, 1]
    assert draft.root(draft.whole[x]) == (draft.whole[z], 0)
    last = blocks(draft)[3]  # half of the 1 by 1 convolution's rows besides
    assert Problem(last.buffers).lower_bound == wide + whole + whole // 2 < bound(draft) < arena(model).head_bytes
    places = place(draft, bound(draft))
    assert places.failed == ()
    prove(network, draft, places.offsets, parse_model(write(draft, places.offsets)))


def test_skip_connections_pass_by_units_of_patches() -> None:
    found = emit(parse_model(models.unet()), heights=[9400])
    network = network_of(found.plan.source)
    cut = [unit for unit in found.units if unit.cuts]
    assert any(len(network.live(unit.begin)) > 1 and len(network.live(unit.end)) > 1 for unit in cut)
    assert any(network.nodes[k].operator.name == "TRANSPOSE_CONV" for unit in cut for k in range(unit.begin, unit.end))
    assert found.arena.smallest_bytes < 0.9 * found.plan.arena.smallest_bytes


# -- what proof is worth ----------------------------------------------------------------------------------------------


def striped() -> tuple[TfliteModel, Draft]:
    """Two convolutions whose second is cut into three patches: garbage above the rows of two of them."""
    net = Net()
    x = net.conv(net.input(1, 12, 8, 4), 8, kernel=1)
    model = parse_model(net.build(net.conv(net.conv(x, 8), 8, kernel=1)))
    return model, lower(network_of(model), [Unit(0, 1, ()), Unit(1, 3, (0, 4, 8, 12))])


def test_garbage_above_rows_that_are_finished_is_found() -> None:
    model, draft = striped()
    row = 8 * 8
    result = draft.whole[model.main.outputs[0]]
    moved = next(
        operator.inputs[0]
        for operator in draft.operators
        if operator.name == "SLICE" and draft.inside.get(operator.outputs[0]) == (result, 4 * row)
    )
    assert draft.inside[moved] == (result, 4 * row)  # one row down, so that its garbage is not above
    draft.place(moved, result, 3 * row)
    found = parse_model(write(draft, place(draft, 3 * bound(draft)).offsets))
    with pytest.raises(InternalError, match="bytes that are not its own"):
        assert_intact(found)


def test_a_lifetime_that_ends_before_its_last_reading_is_found() -> None:
    _, draft = striped()
    places = dict(place(draft, 3 * bound(draft)).offsets)
    assert replay(parse_model(write(draft, places))).faults == ()
    (cut,) = draft.cuts[1].tensors
    first = next(o.outputs[0] for o in draft.operators if o.template == 1)  # of the first patch: the others read on
    places[first] = places[cut] + draft.nbytes(cut) - draft.nbytes(first)
    assert replay(parse_model(write(draft, places))).faults


def test_rows_die_towards_the_rows_that_are_born() -> None:
    """The value before the patches lies at one end of the arena, the one after them at the other."""
    net = Net()
    x = net.conv(net.input(1, 16, 8, 4), 8, kernel=1)
    model = parse_model(net.build(net.conv(net.depthwise(net.conv(x, 48, kernel=1)), 8, kernel=1)))
    draft = lower(network_of(model), [Unit(0, 1, ()), Unit(1, 4, (0, 4, 8, 12, 16), upward=True)])
    assert [list(block.after.values()) for block in blocks(draft)] == [[True], [False], [True], []]
    whole = arena(model).head_bytes
    height = next(h for h in range(bound(draft), 2 * whole, 16) if not place(draft, h).failed)
    assert height == bound(draft) < whole
    assert place(draft, height - 16).failed


# -- real networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_real_networks_need_less(name: str) -> None:
    height, target = TARGETS[name]
    found = emit(read_model(real(name)), heights=None if height is None else [height])
    assert found.arena.smallest_bytes <= target < found.plan.arena.smallest_bytes
    assert found.reason is None
    assert found.extra_share <= 0.1
    assert arena(parse_model(found.data)).smallest_bytes == found.arena.smallest_bytes


def test_what_cannot_be_lower_is_planned_without_patches() -> None:
    model = parse_model(models.cnn())
    found = emit(model)
    assert found.units == ()
    assert found.data == planned_file(found.plan)
    assert found.reason is not None
    assert "no patches save more" in found.reason
    assert found.arena.smallest_bytes == found.plan.arena.smallest_bytes


def test_a_patched_file_is_planned_and_patched_again() -> None:
    first = emit(parse_model(models.resnet("INT16")))
    again = emit(first.model)
    assert again.plan.stock == first.arena
    assert again.arena.smallest_bytes <= first.arena.smallest_bytes


def test_less_work_takes_more_memory_and_never_more_work_than_is_allowed() -> None:
    model = parse_model(models.resnet("INT16"))
    shares = (0.2, 0.1, 0.03, 0.0)
    found = [emit(model, max_extra_macs=share) for share in shares]
    assert all(patched.extra_share <= share for patched, share in zip(found, shares, strict=True))
    assert all(a.arena.smallest_bytes < b.arena.smallest_bytes for a, b in pairwise(found))
    assert [len(patched.units) > 0 for patched in found] == [True, True, True, False]


# -- command line and errors ------------------------------------------------------------------------------------------


def test_the_command_writes_a_file_and_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, path = tmp_path / "net.tflite", tmp_path / "patched.tflite"
    source.write_bytes(models.resnet("INT16"))
    assert main(["stream", str(source), "--emit", str(path), "--format", "json"]) == 0
    said = capsys.readouterr()
    assert f"wrote {path}" in said.err
    told = json.loads(said.out)["emitted"]
    model = read_model(path)
    found = arena(model)
    assert told["ram_bytes"] == found.smallest_bytes < told["plan_ram_bytes"] <= told["runtime_ram_bytes"]
    assert (told["head_bytes"], told["tail_bytes"]) == (found.head_bytes, found.tail_bytes)
    assert (told["operators"], told["runtime_operators"]) == (len(model.main.operators), 15)
    assert told["file_bytes"] == path.stat().st_size
    assert [unit["patches"] for unit in told["units"]] == [2]
    assert told["reason"] is None
    assert main(["stream", str(source), "--emit", str(path), "--force"]) == 0
    assert f"arena {told['ram_bytes']:,} bytes" in capsys.readouterr().out.replace("\n", " ")
    assert main(["stream", str(source), "--emit", str(path)]) == 2
    assert "an output file exists already" in capsys.readouterr().err


def test_both_files_run_in_the_runtime(tmp_path: Path) -> None:
    need_runtime()
    source, path = tmp_path / "net.tflite", tmp_path / "patched.tflite"
    source.write_bytes(models.resnet("INT16"))
    found = memfit.stream(str(source), emit=path, verify=True, verify_inputs=12)
    assert found.emitted is not None
    assert found.emitted["verification"]["identical"] == 12
    assert found.emitted["ram_bytes"] == found.emitted["verification"]["arena_bytes"]


def wide() -> bytes:
    """A convolution of 32-bit integers, which no kernel computes."""
    net = Net("FLOAT32")
    x = net.input(1, 8, 8, 4)
    y = net.conv(x, 4)
    for i in (x, y):
        net.tensors[i] = net.tensors[i]._replace(type="INT32")
    return net.build(y)


@pytest.mark.parametrize(
    ("source", "target", "what", "todo"),
    [
        ("wide", "patched.tflite", "patches are of FLOAT32, INT16, INT8 only", "convert the model to int8"),
        ("dense", "patched.tflite", "patches are of convolutions", "use memfit plan"),
        ("net", "patched.bin", "the suffix says what is written", "name it patched.tflite"),
    ],
)
def test_what_cannot_be_written_says_so(source: str, target: str, what: str, todo: str, tmp_path: Path) -> None:
    made_of = {"wide": wide(), "dense": models.keyword(), "net": models.cnn()}[source]
    path = tmp_path / f"{source}.tflite"
    path.write_bytes(made_of)
    with pytest.raises(UsageError) as caught:
        memfit.stream(str(path), emit=tmp_path / target)
    said = caught.value
    assert what in str(said)
    assert todo in str(said)
    assert said.where
    assert said.received
    assert not (tmp_path / target).exists()


def test_a_model_whose_shapes_contradict_each_other_is_an_error_of_the_file() -> None:
    net = Net()
    x = net.conv(net.input(1, 16, 8, 4), 8)
    y = net.add(x, net.conv(net.conv(x, 48, kernel=1), 8))
    net.tensors[y] = net.tensors[y]._replace(shape=(1, 16, 8, 9))
    model = parse_model(net.build(y), "odd.tflite")
    network = network_of(model)
    draft = lower(network, [Unit(k, k + 1, ()) for k in range(4)])
    places = place(draft, 3 * bound(draft)).offsets
    with pytest.raises(SourceError, match="do not fit together") as caught:
        prove(network, draft, places, parse_model(write(draft, places)))
    assert caught.value.where
    assert caught.value.where.startswith("odd.tflite")


def test_a_source_that_is_no_file_and_a_target_that_is_the_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="convert the network first"):
        memfit.stream("torchvision:resnet18", "1x3x64x64", emit=tmp_path / "x.tflite")
    path = tmp_path / "net.tflite"
    path.write_bytes(models.cnn())
    with pytest.raises(OutputError, match="would replace the one"):
        memfit.stream(str(path), emit=path, force=True)
    assert path.read_bytes() == models.cnn()
