"""Models that torchvision and timm name: built without weights, with inputs from their own configuration."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memfit.capture.phantom import dense
from memfit.capture.shim import define_missing_torchvision_schemas, import_torchvision
from memfit.capture.sources.build import constructing
from memfit.capture.sources.inputs import DTYPES, InputSpec
from memfit.capture.sources.loaded import Arguments, LoadedSource, nearest, positional, without_weights
from memfit.errors import MemfitError, SourceError, said

TARGETS_PER_IMAGE = 8
"""Objects per image in a detector's training example; COCO's training images have 7.3 on average."""

_CLIP_FRAMES = 16
"""Frames of a video clip, as torchvision's video models were trained with."""

_FLOW_SIZE = (520, 960)
"""Image size of torchvision's documented optical-flow example."""


def load_torchvision(name: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    """Build a model that `torchvision.models.list_models()` names.

    Raises:
        SourceError: no such model, a quantized one, or a constructor that refused its arguments.
    """
    models = import_torchvision().models
    source = f"torchvision:{name}"
    names = models.list_models()
    if name.startswith("quantized_") and name in names:
        raise SourceError(
            "torchvision's quantized models hold packed weights of its own kernels, which cannot be captured",
            where=source,
            received=name,
            todo=f"profile torchvision:{name.removeprefix('quantized_')} and count its bytes with --dtype int8",
        )
    if name not in names:
        raise _unknown(source, name, names, "torchvision.models.list_models()")
    builder = models.get_model_builder(name)
    parameters = inspect.signature(builder).parameters
    arguments = without_weights(args)
    arguments |= dict.fromkeys((p for p in parameters if p.startswith("weights")), None)
    if builder.__name__ in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", False)  # their own warning about it is about values
    model = construct(source, lambda: builder(**arguments), dtype)
    family = builder.__module__.split(".")[2]
    describe = _FAMILIES.get(family, _classifier)
    return describe(source, model, _float(dtype), _transforms(models, name))


def load_timm(name: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    """Build a model that `timm.list_models()` names; a tag (`resnet50.a1_in1k`) is allowed.

    Raises:
        SourceError: no such model, or a constructor that refused its arguments.
    """
    define_missing_torchvision_schemas()
    import_torchvision_if_present()
    import timm

    source = f"timm:{name}"
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown(source, name, timm.list_models(), "timm.list_models()")
    arguments = without_weights(args)
    model = construct(source, lambda: timm.create_model(name, pretrained=False, **arguments), dtype)
    config = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(config.get("input_size") or (3, 224, 224))
    side = arguments.get("img_size")
    if side is not None:
        size = (size[0], *(side if isinstance(side, list | tuple) else (side, side)))
    size = (arguments.get("in_chans", size[0]), *size[1:])
    return LoadedSource(source, model, specs=(InputSpec((1, *size), _float(dtype), "input"),))


def import_torchvision_if_present() -> None:
    """Import torchvision by its fast way before a library that would import it slowly."""
    try:
        import_torchvision()
    except ModuleNotFoundError:
        return


def construct(source: str, constructor: Callable[[], Any], dtype: str | None) -> nn.Module:
    """Run a constructor with phantom weights; its own error becomes a SourceError."""
    try:
        with constructing(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = constructor()
            if dtype is not None and DTYPES[dtype].is_floating_point:
                model = model.to(DTYPES[dtype])
    except MemfitError:
        raise
    except Exception as error:
        raise SourceError(
            "the constructor failed",
            where=source,
            received=said(error),
            todo="check the arguments given with --arg",
        ) from error
    if not isinstance(model, nn.Module):
        raise SourceError(
            "this does not build a module",
            where=source,
            received=type(model).__name__,
            todo="name a class or function that makes an nn.Module",
        )
    return model


def _unknown(source: str, name: str, names: list[str], listing: str) -> SourceError:
    guess = nearest(name, names)
    return SourceError(
        "there is no model of that name", where=source, received=name, todo=guess or f"{listing} gives all names"
    )


def _float(dtype: str | None) -> str:
    return dtype if dtype is not None and DTYPES[dtype].is_floating_point else "float32"


def _transforms(models: Any, name: str) -> dict[str, Any]:
    """Sizes that a model's own preprocessing states: crop_size, resize_size."""
    try:
        transforms = next(iter(models.get_model_weights(name))).transforms
    except (ValueError, StopIteration, AttributeError):
        return {}
    return dict(getattr(transforms, "keywords", {}))


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


# -- torchvision's families ---------------------------------------------------------------------------------------


def _classifier(source: str, model: nn.Module, dtype: str, sizes: dict[str, Any]) -> LoadedSource:
    height, width = _pair(getattr(model, "image_size", None) or sizes.get("crop_size", 224))
    return LoadedSource(
        source, model, specs=(InputSpec((1, 3, height, width), dtype, "input"),), loss=_classification_loss
    )


def _segmenter(source: str, model: nn.Module, dtype: str, sizes: dict[str, Any]) -> LoadedSource:
    height, width = _pair(sizes.get("resize_size", 520))
    return LoadedSource(
        source, model, specs=(InputSpec((1, 3, height, width), dtype, "input"),), loss=_segmentation_loss
    )


def _video(source: str, model: nn.Module, dtype: str, sizes: dict[str, Any]) -> LoadedSource:
    height, width = _pair(sizes.get("crop_size", 112))
    spec = InputSpec((1, 3, _CLIP_FRAMES, height, width), dtype, "input")
    return LoadedSource(source, model, specs=(spec,), loss=_classification_loss)


def _flow(source: str, model: nn.Module, dtype: str, _sizes: dict[str, Any]) -> LoadedSource:
    specs = tuple(InputSpec((1, 3, *_FLOW_SIZE), dtype, f"image{i}") for i in (1, 2))
    return LoadedSource(source, model, specs=specs, arrange=positional)


def _detector(source: str, model: nn.Module, dtype: str, _sizes: dict[str, Any]) -> LoadedSource:
    transform: Any = model.transform
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
    else:
        height = width = transform.min_size[-1]
    keypoints = 0
    roi_heads = getattr(model, "roi_heads", None)
    masks = roi_heads is not None and roi_heads.has_mask()
    if roi_heads is not None and roi_heads.has_keypoint():
        keypoints = roi_heads.keypoint_predictor.kps_score_lowres.out_channels
    return LoadedSource(
        source,
        model,
        specs=(InputSpec((1, 3, height, width), dtype, "images"),),
        arrange=_image_list,
        targets=lambda arguments: _detection_targets(arguments, masks=masks, keypoints=keypoints),
        loss=_sum_of_losses,
    )


_FAMILIES: dict[str, Callable[[str, nn.Module, str, dict[str, Any]], LoadedSource]] = {
    "detection": _detector,
    "optical_flow": _flow,
    "segmentation": _segmenter,
    "video": _video,
}


def _image_list(tensors: Mapping[str, Any]) -> Arguments:
    """Detectors take a list of images, which may differ in size."""
    images = next(iter(tensors.values()))
    if images.dim() != 4:
        return ([images],), {}
    return ([dense(tuple(images.shape[1:]), images.dtype) for _ in range(images.shape[0])],), {}


def _detection_targets(arguments: Arguments, *, masks: bool, keypoints: int) -> Arguments:
    """Boxes and labels for every image, and masks or keypoints where the model learns them."""
    images = arguments[0][0]
    targets = []
    for image in images:
        target = {
            "boxes": dense((TARGETS_PER_IMAGE, 4), torch.float32),
            "labels": dense((TARGETS_PER_IMAGE,), torch.int64),
        }
        if masks:
            target["masks"] = dense((TARGETS_PER_IMAGE, *image.shape[-2:]), torch.uint8)
        if keypoints:
            target["keypoints"] = dense((TARGETS_PER_IMAGE, keypoints, 3), torch.float32)
        targets.append(target)
    return (images, targets), {}


# -- losses -------------------------------------------------------------------------------------------------------


def _sum_of_losses(outputs: Any) -> Tensor:
    losses = list(outputs.values())
    total: Tensor = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def _cross_entropy(scores: Tensor) -> Tensor:
    labels = torch.zeros((scores.shape[0], *scores.shape[2:]), dtype=torch.int64)
    return nn.functional.cross_entropy(scores, labels)


def _classification_loss(outputs: Any) -> Tensor:
    """Cross entropy of the class scores, and of the auxiliary heads that googlenet and inception have in training."""
    if isinstance(outputs, Tensor):
        return _cross_entropy(outputs)
    return _sum_of_losses({i: _cross_entropy(o) for i, o in enumerate(outputs) if o is not None})


def _segmentation_loss(outputs: Any) -> Tensor:
    """Cross entropy of every pixel's scores; the auxiliary head counts half."""
    loss = _cross_entropy(outputs["out"])
    return loss + 0.5 * _cross_entropy(outputs["aux"]) if "aux" in outputs else loss
