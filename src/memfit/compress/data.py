"""Data to run a network on: a user's own loader, a folder of images, arrays, or seeded noise, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memfit.errors import SourceError, UsageError, require, said
from memfit.units import format_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANDOM = "random"
SAMPLES, BATCH = 32, 8
"""How many samples of noise, and in batches of how many, unless said otherwise."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours from 0 to 1, https://docs.pytorch.org/vision/0.28/models.html, read 2026-11-21."""

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of files that are taken for images."""

LABELS = ("labels", "label", "targets", "target", "y")
"""What labels are called among named tensors."""

_KINDS = "give random, FILE.py:CALLABLE, a folder of images or FILE.npz"


@dataclass(frozen=True)
class Wanted:
    """One input that the model takes; the first dimension is the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: int | None = None
    """Of the table that its whole numbers are looked up in."""
    strict: bool = False
    """True where the user gave the shape, so that data of another shape is refused."""


@dataclass(frozen=True)
class Batch:
    """Some samples, one tensor per input of the model in its order, and their labels where there are any."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None = None
    names: tuple[str, ...] | None = None
    """Of the inputs, where the data names them."""

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return int(self.inputs[0].shape[0]) if self.inputs[0].dim() else 1


@dataclass(frozen=True)
class Data:
    """Samples that can be gone through again and again, the same each time.

    Iterating gives `Batch` after `Batch`, checked: no NaN, no infinity, shapes that the model takes.
    """

    name: str
    make: Callable[[], Iterator[Batch]] = field(repr=False)
    batch: int | None = None
    """Samples in a batch; None keeps the data's own batches."""
    samples: int | None = None
    """Stop after so many; None goes to the end."""
    length: int | None = None
    """How many samples there are, as far as is known beforehand."""
    classes: tuple[str, ...] = ()
    """Names of the labels, where sub-folders give them."""

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches.

        Raises:
            SourceError: no samples, a value that is no finite number, or an error of the user's own code.
        """
        count = 0
        for number, found in enumerate(_rebatched(self.make(), self.batch, self.samples), 1):
            for place, tensor in enumerate(found.inputs):
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    wrong = int((~torch.isfinite(tensor)).sum())
                    raise SourceError(
                        "the data holds values that are NaN or infinite",
                        where=f"{self.name}, batch {number}",
                        received=f"{wrong:,} of {tensor.numel():,} values of input {place}",
                        todo="clean the data",
                    )
            count += found.samples
            yield found
        if not count:
            raise SourceError(
                "the data has no samples",
                where=self.name,
                received="not a single batch",
                todo="check that the folder, file or callable gives samples each time that it is asked",
            )

    def fingerprint(self) -> str:
        """Hash every sample and label; how they are batched makes no difference."""
        found = Fingerprint()
        for batch in self:
            found.add(batch)
        return found.hexdigest()


class Fingerprint:
    """A hash of samples as they come by."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: Batch) -> None:
        """Take in a batch, sample by sample."""
        tensors = [*batch.inputs, *([] if batch.labels is None else [batch.labels])]
        for sample in range(batch.samples):
            for tensor in tensors:
                hash_tensor(self._hash, tensor[sample] if tensor.dim() else tensor)

    def hexdigest(self) -> str:
        """Give what came by so far as text."""
        return self._hash.hexdigest()


def hash_tensor(into: Any, tensor: Tensor) -> None:
    """Add a tensor's dtype, shape and bytes to a hash."""
    into.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        into.update(flat.view(torch.uint8).numpy())


def hash_model(named: Mapping[str, Tensor], structure: Iterable[str] = ()) -> str:
    """Hash a model's tensors by name, and whatever else tells it from another.

    >>> hash_model({"w": torch.zeros(2)}) == hash_model({"w": torch.ones(2)})
    False
    """
    found = hashlib.sha256()
    for text in structure:
        found.update(f"{text}\n".encode())
    for name in sorted(named):
        found.update(name.encode())
        hash_tensor(found, named[name])
    return found.hexdigest()


def open_data(
    data: Any,
    wanted: Sequence[Wanted] | None,
    *,
    samples: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Data:
    """Open data by what the user named, or wrap what a program holds.

    >>> image = Wanted("input", (1, 3, 8, 8), "float32")
    >>> [batch.inputs[0].shape[0] for batch in open_data("random", [image], samples=5, batch=2)]
    [2, 2, 1]

    Args:
        data: `FILE.py:CALLABLE`, whose result is an iterable of batches; a folder of images, sub-folders being the
            classes; a `.npz` file with `x` and perhaps `y`; `random`; or an iterable of batches. A batch is a tensor,
            inputs and labels, or a dict of inputs by name.
        wanted: the model's inputs; None where they are not known, so that the data's own shapes are taken.
        samples: how many; None takes all, or 32 of noise.
        batch: samples in a batch; None keeps a loader's own and makes batches of 8 otherwise.
        seed: of the noise, and of the choice where a folder or a file holds more samples than are wanted.
        mean: of the colours of images, from 0 to 1, taken from each; None is ImageNet's for three channels.
        std: what each colour is then divided by.

    Raises:
        UsageError: it is none of these, or an option that cannot be.
        SourceError: a file that is not there or cannot be read.
        MissingExtra: images without Pillow.
    """
    for name, value in (("--samples", samples), ("--batch", batch)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1", where=name, received=str(value), todo="give 1 or more")
    if (mean is not None or std is not None) and not (isinstance(data, str | Path) and Path(data).is_dir()):
        raise UsageError(
            "--mean and --std are of a folder of images",
            where="--data",
            received=str(data) if isinstance(data, str | Path) else type(data).__name__,
            todo="leave them out, and scale the data yourself",
        )
    if not isinstance(data, str | Path):
        return Data(type(data).__name__, _own(type(data).__name__, lambda: data, wanted), batch, samples)
    text = str(data)
    if text == RANDOM:
        count = samples or SAMPLES
        known = _known(wanted, text)
        return Data(RANDOM, lambda: _noise(known, count, seed), batch or BATCH, count, count)
    file, colon, name = text.rpartition(":")
    if colon and file.endswith(".py"):
        make = _own(text, _user_function(text), wanted)
        return Data(text, make, batch, samples)
    if Path(text).is_dir():
        folder = _Folder(Path(text), _known(wanted, text), _colours(mean, std, wanted))
        return folder.open(samples, batch or BATCH, seed)
    if text.endswith(".npz"):
        return _arrays(Path(text), wanted, samples, batch or BATCH, seed)
    if not Path(text).exists() and ("/" in text or "." in text):
        raise SourceError("there is no such file or folder", where="--data", received=text, todo=_KINDS)
    raise UsageError("this is not data that memfit reads", where="--data", received=repr(text), todo=_KINDS)


@dataclass(frozen=True)
class Sampling:
    """Which samples to run on, and in what batches; see `open_data`."""

    data: Any
    samples: int | None = None
    batch: int | None = None
    seed: int = 0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def open(self, wanted: Sequence[Wanted] | None, *, again: bool = True) -> Data:
        """Open the data for a model's inputs; for going through it `again`, what comes only once is kept."""
        kept = _Kept(self.data) if again and isinstance(self.data, Iterator) else self.data
        return open_data(**{**vars(self), "data": kept}, wanted=wanted)


class _Kept:
    """An iterator that can be gone through again."""

    def __init__(self, once: Iterator[Any]) -> None:
        self._once = once
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        yield from self._seen
        for batch in self._once:
            self._seen.append(batch)
            yield batch


def _known(wanted: Sequence[Wanted] | None, data: str) -> Sequence[Wanted]:
    if wanted is None:
        raise UsageError(
            "the inputs of this model are not known, and the data takes its shape from them",
            where="--data",
            received=data,
            todo="give one --input for each input, such as --input 1x3x224x224",
        )
    return wanted


# -- batches ----------------------------------------------------------------------------------------------------------


def _rebatched(batches: Iterator[Batch], size: int | None, most: int | None) -> Iterator[Batch]:
    """Split and join batches to one size, and stop after so many samples; the last batch may be smaller."""
    left = most
    waiting: list[Batch] = []
    held = 0
    for found in batches:
        batch = found
        if left is not None:
            batch = _part(batch, 0, left)
            left -= batch.samples
        if size is None:
            yield batch
        else:
            if waiting and not _alike(waiting[0], batch):
                yield from _cut(waiting, size, held)
                waiting, held = [], 0
            waiting.append(batch)
            held += batch.samples
            if held >= size:
                *whole, last = _cut(waiting, size, held)
                yield from whole
                if last.samples == size:
                    yield last
                    waiting, held = [], 0
                else:
                    waiting, held = [last], last.samples
        del batch, found
        if left is not None and left <= 0:
            break
    if waiting and size is not None:
        yield from _cut(waiting, size, held)


def _cut(batches: list[Batch], size: int, held: int) -> list[Batch]:
    """Join batches and cut the whole into pieces."""
    first = batches[0]
    if len(batches) == 1:
        whole = first
    else:
        inputs = tuple(torch.cat([b.inputs[i] for b in batches]) for i in range(len(first.inputs)))
        labels = None if first.labels is None else torch.cat([b.labels for b in batches if b.labels is not None])
        whole = Batch(inputs, labels, first.names)
    return [_part(whole, start, start + size) for start in range(0, held, size)]


def _part(batch: Batch, start: int, end: int) -> Batch:
    if start == 0 and end >= batch.samples:
        return batch
    labels = None if batch.labels is None else batch.labels[start:end]
    return Batch(tuple(t[start:end] for t in batch.inputs), labels, batch.names)


def _alike(one: Batch, other: Batch) -> bool:
    return [t.shape[1:] for t in one.inputs] == [t.shape[1:] for t in other.inputs]


def _fitted(tensor: Tensor, wanted: Wanted, where: str) -> Tensor:
    """Give a tensor the dtype that the model takes, and check its shape."""
    expected: torch.dtype = getattr(torch, wanted.dtype)
    shape = tuple(tensor.shape)
    if len(shape) != len(wanted.shape) or (wanted.strict and shape[1:] != wanted.shape[1:]):
        raise SourceError(
            "the data does not have the shape that the model takes",
            where=where,
            received=f"{format_shape(shape)} for {wanted.name}",
            todo=f"give batches of Nx{format_shape(wanted.shape[1:])}, the samples along the first dimension",
        )
    if tensor.dtype is expected:
        return tensor
    if expected.is_floating_point != tensor.is_floating_point():
        raise SourceError(
            "the data does not have the type that the model takes",
            where=where,
            received=f"{str(tensor.dtype).removeprefix('torch.')} for {wanted.name}",
            todo=f"give {wanted.dtype}" + ("; scale images as in training" if expected.is_floating_point else ""),
        )
    return tensor.to(expected)


# -- kinds of data ----------------------------------------------------------------------------------------------------


def _noise(wanted: Sequence[Wanted], count: int, seed: int) -> Iterator[Batch]:
    """Draw each sample with a seed of its own, so that how many are drawn at once makes no difference."""
    for sample in range(count):
        own = np.random.SeedSequence((seed, sample)).generate_state(1)  # PyTorch's generator takes 32 bits of a seed
        generator = torch.Generator().manual_seed(int(own[0]))
        yield Batch(tuple(_drawn(entry, generator) for entry in wanted))


def _drawn(entry: Wanted, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    shape = (1, *entry.shape[1:])
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    if entry.rows:
        return torch.randint(entry.rows, shape, generator=generator, dtype=dtype)
    return torch.zeros(shape, dtype=dtype)


def _user_function(text: str) -> Callable[[], Any]:
    from memfit.capture.sources.user_file import load_function

    return load_function(text)


def _own(name: str, call: Callable[[], Any], wanted: Sequence[Wanted] | None) -> Callable[[], Iterator[Batch]]:
    """Read the batches that a user's own code gives."""

    def batches() -> Iterator[Batch]:
        given = call()
        if isinstance(given, Tensor | np.ndarray):
            given = [given]
        try:
            iterator = iter(given)
        except TypeError:
            raise SourceError(
                "the data is not an iterable of batches",
                where=name,
                received=type(given).__name__,
                todo="return a DataLoader, a list or a generator of tensors or of (inputs, labels)",
            ) from None
        number = 0
        while True:
            number += 1
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                raise SourceError(
                    "the data failed",
                    where=f"{name}, batch {number}",
                    received=said(error),
                    todo="go through it by itself, or with --debug for the whole traceback",
                ) from error
            yield _read_batch(batch, wanted, f"{name}, batch {number}")

    return batches


def _read_batch(given: Any, wanted: Sequence[Wanted] | None, where: str) -> Batch:
    """Tell inputs from labels."""
    labels: Any = None
    names: tuple[str, ...] | None = None
    inputs: Any = given
    if isinstance(inputs, list | tuple) and _has_labels(inputs, wanted):
        *first, labels = inputs
        inputs = first[0] if len(first) == 1 else first
    if isinstance(inputs, Mapping):
        found = {str(key): value for key, value in inputs.items()}
        for key in LABELS:
            if key in found and not any(entry.name == key for entry in wanted or ()):
                labels = found.pop(key)
                break
        inputs, names = _by_name(found, wanted, where)
    parts = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    tensors = [_tensor(part, where) for part in parts]
    if wanted is not None:
        if len(tensors) != len(wanted):
            raise SourceError(
                "the data does not have the inputs that the model takes",
                where=where,
                received=f"{len(tensors)} tensors",
                todo=f"give {', '.join(entry.name for entry in wanted)}, and labels after them",
            )
        tensors = [_fitted(t, entry, where) for t, entry in zip(tensors, wanted, strict=True)]
    counts = {int(t.shape[0]) if t.dim() else -1 for t in tensors}
    if len(counts) != 1 or -1 in counts or not tensors:
        raise SourceError(
            "the tensors of a batch do not hold the same number of samples",
            where=where,
            received=", ".join(format_shape(tuple(t.shape)) for t in tensors) or "no tensors",
            todo="put the samples along the first dimension of each",
        )
    if 0 in counts:
        raise SourceError("a batch is empty", where=where, received="0 samples", todo="leave it out")
    return Batch(tuple(tensors), None if labels is None else _tensor(labels, where), names)


def _has_labels(parts: Sequence[Any], wanted: Sequence[Wanted] | None) -> bool:
    """Tell whether the last of several parts is labels: with one more than the model takes, or inputs of their own."""
    if len(parts) < 2:
        return False
    if isinstance(parts[0], list | tuple | Mapping):
        return len(parts) == 2
    return len(parts) == (2 if wanted is None else len(wanted) + 1)


def _by_name(
    found: dict[str, Any], wanted: Sequence[Wanted] | None, where: str
) -> tuple[list[Any], tuple[str, ...] | None]:
    if wanted is None:
        return list(found.values()), tuple(found)
    if len(wanted) == 1 and len(found) == 1:
        return list(found.values()), None
    missing = [entry.name for entry in wanted if entry.name not in found]
    if missing:
        raise SourceError(
            "the data lacks an input of the model",
            where=where,
            received=", ".join(found) or "nothing",
            todo=f"name the inputs {', '.join(entry.name for entry in wanted)}",
        )
    return [found[entry.name] for entry in wanted], None


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError):
        raise SourceError(
            "the data holds something that is no tensor", where=where, received=type(value).__name__, todo=_BATCHES
        ) from None


_BATCHES = "give tensors, (inputs, labels), or a dict of inputs by name"


def _chosen(count: int, samples: int | None, seed: int) -> NDArray[np.int64]:
    """Draw which samples to take; all of them stay in order."""
    if samples is None or samples >= count:
        return np.arange(count)
    return np.random.default_rng(seed).permutation(count)[:samples]


def _arrays(path: Path, wanted: Sequence[Wanted] | None, samples: int | None, batch: int, seed: int) -> Data:
    if not path.is_file():
        raise SourceError("there is no such file", where="--data", received=str(path), todo="check the path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise SourceError(
            "this file of arrays cannot be read",
            where=str(path),
            received=said(error),
            todo="write it with numpy.savez(file, x=…, y=…)",
        ) from None
    labels = next((arrays.pop(key) for key in LABELS if key in arrays), None)
    if wanted is None or len(wanted) == 1:
        if "x" in arrays or len(arrays) == 1:
            arrays = {"x": arrays.get("x", next(iter(arrays.values()), None))}
        given: Any = list(arrays.values())
    else:
        given = arrays
    if not arrays:
        raise SourceError("this file holds no inputs", where=str(path), received="no array x", todo="name the inputs x")
    whole = _read_batch((given, labels) if labels is not None else given, wanted, str(path))
    if whole.labels is not None and len(whole.labels) != whole.samples:
        raise SourceError(
            "there is not one label for each sample",
            where=str(path),
            received=f"{len(whole.labels)} labels for {whole.samples} samples",
            todo="give as many",
        )
    chosen = torch.from_numpy(_chosen(whole.samples, samples, seed))

    def batches() -> Iterator[Batch]:
        for part in torch.split(chosen, batch):
            yield Batch(tuple(t[part] for t in whole.inputs), None if whole.labels is None else whole.labels[part])

    return Data(str(path), batches, batch, samples, len(chosen))


class _Folder:
    """A folder of images, which are read when they are wanted."""

    def __init__(self, folder: Path, wanted: Sequence[Wanted], colours: tuple[Tensor, Tensor]) -> None:
        require("PIL", "compress", "reading images needs Pillow", where="--data")
        self.folder, self.wanted, self.colours = folder, wanted[0], colours
        self.classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and any(_images(p))))
        self.files: list[tuple[Path, int | None]] = []
        if self.classes:
            for number, name in enumerate(self.classes):
                self.files += [(path, number) for path in _images(folder / name)]
        else:
            self.files = [(path, None) for path in _images(folder)]
        if not self.files:
            raise SourceError(
                "this folder holds no images",
                where=str(folder),
                received="no file that ends in " + ", ".join(IMAGES),
                todo="give a folder of images, or of one folder per class",
            )

    def open(self, samples: int | None, batch: int, seed: int) -> Data:
        """Choose the images to take."""
        chosen = [self.files[i] for i in _chosen(len(self.files), samples, seed)]
        dtype: torch.dtype = getattr(torch, self.wanted.dtype)
        mean, std = self.colours

        def batches() -> Iterator[Batch]:
            for path, label in chosen:
                image = torch.from_numpy(_image(path, self.wanted.shape)).to(torch.float32).div_(255)
                image = image.sub_(mean).div_(std).to(dtype)
                yield Batch((image[None],), None if label is None else torch.tensor([label]))

        return Data(str(self.folder), batches, batch, samples, len(chosen), self.classes)


def _images(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGES and p.is_file())


def _colours(
    mean: Sequence[float] | None, std: Sequence[float] | None, wanted: Sequence[Wanted] | None
) -> tuple[Tensor, Tensor]:
    """Give what is taken from each colour and what it is divided by, for a model that takes images."""
    wanted = wanted or ()
    if len(wanted) != 1 or len(wanted[0].shape) != 4 or wanted[0].shape[1] not in (1, 3):
        raise UsageError(
            "a folder of images is for a model that takes images of one or three channels",
            where="--data",
            received=", ".join(f"{entry.name} {format_shape(entry.shape)}" for entry in wanted),
            todo="give FILE.py:CALLABLE or a .npz",
        )
    channels = wanted[0].shape[1]
    defaults = (MEAN, STD) if channels == 3 else ((0.0,), (1.0,))
    found = []
    for option, given, default in (("--mean", mean, defaults[0]), ("--std", std, defaults[1])):
        values = tuple(default if given is None else given)
        if len(values) == 1:
            values *= channels
        if len(values) != channels or (option == "--std" and not all(v > 0 for v in values)):
            raise UsageError(
                f"{option} has one number for each channel" + (", above zero" if option == "--std" else ""),
                where=option,
                received=", ".join(map(str, values)),
                todo=f"give {channels}, from 0 to 1",
            )
        found.append(torch.tensor(values).view(-1, 1, 1))
    return found[0], found[1]


def _image(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an image, scale it to cover the model's input, cut out its middle: channels, height, width, 0 to 255."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    _, channels, height, width = shape
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
            pixels = np.array(fitted, dtype=np.uint8)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise SourceError(
            "this image cannot be read",
            where=str(path),
            received=said(error),
            todo="take it out of the folder, or save it again",
        ) from None
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
