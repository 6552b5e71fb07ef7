"""transformers models from a configuration file: no hub, no weights, inputs as the configuration describes them."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memfit.capture.phantom import dense
from memfit.capture.shim import define_missing_torchvision_schemas
from memfit.capture.sources.inputs import DTYPES, InputSpec
from memfit.capture.sources.library import construct
from memfit.capture.sources.loaded import Arguments, LoadedSource, by_name, nearest, without_weights
from memfit.errors import SourceError, said

DEFAULT_LENGTH = 512
"""Longest default sequence: what most encoders take, and short for a decoder."""

_MAPPINGS = (
    "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "IMAGE_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION", "OBJECT_DETECTION", "VIDEO_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC",
)  # fmt: skip
"""Kinds of model to look through where a configuration names no architecture."""


def load_config(path: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    """Build the model that a `config.json` describes; `args` override entries of the configuration.

    Raises:
        SourceError: no such file, no configuration in it, an unknown architecture, or a constructor that failed.
    """
    source = f"hf:{path}"
    content = _read(source, path)
    content |= without_weights(args)
    define_missing_torchvision_schemas()
    with _offline():
        transformers = importlib.import_module("transformers")
        config = _config(source, transformers, content)
        architecture = _architecture(source, transformers, content, config)
        own = content.get("dtype") or content.get("torch_dtype")
        chosen = getattr(torch, dtype or str(own).removeprefix("torch."), None) if dtype or own else None
        model = construct(source, lambda: _build(architecture, config, chosen), None)
    specs = _specs(model, config, _dtype_name(model, dtype))
    return LoadedSource(
        source, model, specs=specs, arrange=by_name, targets=lambda call: _targets(model, call), loss=_own_loss
    )


def _read(source: str, path: str) -> dict[str, Any]:
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    if not file.is_file():
        raise SourceError(
            "there is no such configuration file",
            where=source,
            received=str(file),
            todo="give the path of a config.json, or of the folder that holds one; memfit downloads nothing",
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise SourceError(
            "this configuration cannot be read",
            where=str(file),
            received=said(error),
            todo="give a transformers config.json",
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise SourceError(
            "this is not a transformers configuration: it states no model_type",
            where=str(file),
            received=f"keys {', '.join(list(content)[:6])}" if isinstance(content, dict) else type(content).__name__,
            todo="give the config.json of a transformers model",
        )
    return content


def _config(source: str, transformers: Any, content: dict[str, Any]) -> Any:
    model_type = content["model_type"]
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if model_type not in known:
        raise SourceError(
            "transformers knows no such model_type",
            where=source,
            received=model_type,
            todo=nearest(model_type, list(known.keys())) or "check the name, or install a newer transformers",
        )
    try:
        return known[model_type].from_dict(content)
    except Exception as error:
        raise SourceError(
            "transformers refused the configuration",
            where=source,
            received=said(error),
            todo="check the file, and the values given with --arg",
        ) from error


def _architecture(source: str, transformers: Any, content: dict[str, Any], config: Any) -> Any:
    """The class that the configuration names, else the first kind of model that its model_type has."""
    named = content.get("architectures") or []
    for name in named:
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    mappings = transformers.models.auto.modeling_auto
    for kind in _MAPPINGS:
        names = getattr(mappings, f"MODEL_FOR_{kind}_MAPPING_NAMES", {})
        if config.model_type in names:
            name = names[config.model_type]
            return getattr(transformers, name if isinstance(name, str) else name[0])
    name = mappings.MODEL_MAPPING_NAMES.get(config.model_type)
    if name is None:
        raise SourceError(
            "transformers has no model for this configuration",
            where=source,
            received=", ".join(named) or config.model_type,
            todo="name one of transformers' classes under architectures",
        )
    return getattr(transformers, name if isinstance(name, str) else name[0])


def _build(architecture: Any, config: Any, dtype: torch.dtype | None) -> nn.Module:
    model: nn.Module = architecture._from_config(config, **({} if dtype is None else {"dtype": dtype}))
    return model


def _dtype_name(model: nn.Module, dtype: str | None) -> str:
    own = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), DTYPES[dtype or "float32"])
    return str(own).removeprefix("torch.")


# -- inputs -------------------------------------------------------------------------------------------------------


def _specs(model: Any, config: Any, dtype: str) -> tuple[InputSpec, ...]:
    """Inputs that the model cannot do without, sized by the configuration."""
    parameters = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    names = [main] if main in parameters else []
    if (
        "pixel_values" in parameters
        and "input_ids" in parameters
        and hasattr(config, "text_config")
        and ("image_embeds" not in parameters and _is_dual_encoder(model, config))
    ):
        names = ["input_ids", "pixel_values"]
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        names.append("decoder_input_ids")
    required = (n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)
    names.extend(n for n in required if n not in names and (n in _INPUTS or n.endswith("input_ids")))
    return tuple(_INPUTS.get(name, _ids)(config, dtype, name) for name in names)


def _is_dual_encoder(model: Any, config: Any) -> bool:
    """True for models that compare texts with images, and so need both."""
    encodes_both = hasattr(model, "get_text_features") and hasattr(model, "get_image_features")
    return hasattr(config, "vision_config") and (encodes_both or hasattr(config, "projection_dim"))


def _attribute(config: Any, names: tuple[str, ...], default: Any) -> Any:
    for part in (config, *(getattr(config, n, None) for n in ("vision_config", "encoder", "backbone_config"))):
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _ids(config: Any, _dtype: str, name: str) -> InputSpec:
    text = config.get_text_config(decoder=True if name.startswith("decoder") else None)
    limits = ("max_position_embeddings", "n_positions", "max_target_positions", "max_sequence_length", "n_ctx")
    limit = next((v for v in (getattr(text, n, None) for n in limits) if isinstance(v, int) and v > 0), DEFAULT_LENGTH)
    if text.model_type in _OFFSET_POSITIONS:
        limit -= 2
    return InputSpec((1, min(limit, DEFAULT_LENGTH)), "int64", name)


_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "longformer", "xlm-roberta-xl", "ibert", "mpnet", "esm"}
"""Models whose positions start after the padding index, so that their table is two longer than their input."""


def _pixels(config: Any, dtype: str, name: str) -> InputSpec:
    if getattr(config, "num_frames", None) is not None:
        return _video(config, dtype, name)
    return _image(config, dtype, name)


def _image(config: Any, dtype: str, name: str) -> InputSpec:
    size = _attribute(config, ("image_size", "input_size", "img_size"), 224)
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = _attribute(config, ("num_channels", "in_channels", "in_chans"), 3)
    return InputSpec((1, channels, height, width), dtype, name)


def _video(config: Any, dtype: str, name: str) -> InputSpec:
    image = _image(config, dtype, name)
    frames = _attribute(config, ("num_frames", "frames_per_clip"), 16)
    return InputSpec((1, frames, *image.shape[1:]), dtype, name)


def _spectrogram(config: Any, dtype: str, name: str) -> InputSpec:
    bins = _attribute(config, ("num_mel_bins", "input_feat_per_channel", "feature_size"), 80)
    if hasattr(config, "max_source_positions"):
        return InputSpec((1, bins, 2 * config.max_source_positions), dtype, name)
    return InputSpec((1, DEFAULT_LENGTH, bins), dtype, name)


def _waveform(config: Any, dtype: str, name: str) -> InputSpec:
    if hasattr(config, "num_mel_bins"):
        return InputSpec((1, getattr(config, "max_length", 1024), config.num_mel_bins), dtype, name)
    channels = getattr(config, "audio_channels", None)
    return InputSpec((1, 16000) if channels is None else (1, channels, 16000), dtype, name)


_INPUTS: dict[str, Callable[[Any, str, str], InputSpec]] = {
    "pixel_values": _pixels,
    "pixel_values_videos": _video,
    "input_features": _spectrogram,
    "input_values": _waveform,
}
"""Makers of default inputs by argument; every other argument takes token ids."""


# -- training -----------------------------------------------------------------------------------------------------


def _targets(model: Any, call: Arguments) -> Arguments:
    """Add labels where the model computes its own loss, and leave out the cache that only generation needs."""
    args, kwargs = call
    parameters = inspect.signature(model.forward).parameters
    kwargs = dict(kwargs)
    if "use_cache" in parameters:
        kwargs["use_cache"] = False
    ids = kwargs.get("decoder_input_ids", kwargs.get("input_ids"))
    batch = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)).shape[0]
    kind = type(model).__name__
    if "start_positions" in parameters:
        kwargs |= {name: dense((batch,), torch.int64) for name in ("start_positions", "end_positions")}
    elif "labels" in parameters and kind.endswith("Classification") and not kind.endswith("TokenClassification"):
        kwargs["labels"] = dense((batch,), torch.int64)
    elif "labels" in parameters and ids is not None:
        kwargs["labels"] = dense(tuple(ids.shape), torch.int64)
    elif "return_loss" in parameters:
        kwargs["return_loss"] = True
    return args, kwargs


def _own_loss(outputs: Any) -> Tensor:
    """The loss that the model computed from its labels, else the tracer's own choice."""
    loss = getattr(outputs, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    from memfit.capture.step import default_loss

    return default_loss(outputs)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep transformers off the network while a model is built, and leave its settings as they were."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    constants = sys.modules.get("huggingface_hub.constants")
    was_offline = getattr(constants, "HF_HUB_OFFLINE", (before["HF_HUB_OFFLINE"] or "0").upper() in _TRUE)
    if constants is not None:
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            constants.HF_HUB_OFFLINE = was_offline  # type: ignore[attr-defined]


_TRUE = {"1", "ON", "YES", "TRUE"}
