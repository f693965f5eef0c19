"""Build timm's networks, and the user's, for radiographs: one grey channel as input and one logit as output.

An architecture is a name of timm ("resnet34"), a name with arguments of timm.create_model
("vit_small_patch16_224?dynamic_img_size=true"), or a function of the user's ("mypackage.networks:small_net").
"""

import difflib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import timm
import torch

from acuity.objectives.device.memory import is_out_of_memory
from acuity.objectives.errors import InputError, first_line
from acuity.objectives.training.own_function import is_own_function, load_function

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_OWN_NORMALISATION = (0.5, 0.5)
"""Mean and standard deviation of a user's network without a pretrained_cfg: its input lies in [-1, 1]."""
_RESERVED_ARGUMENTS = {
    "cache_dir", "checkpoint_path", "features_only", "in_chans", "model_name", "num_classes", "pretrained",
    "pretrained_cfg", "pretrained_cfg_overlay", "scriptable",
}  # fmt: skip


def check_architecture(architecture: str) -> None:
    """InputError if the function is not here, or, with the nearest known names, if timm has no such network."""
    if is_own_function(architecture):
        load_function(architecture)
        return
    name, _ = timm_arguments(architecture)
    if timm.is_model(name) and name in (timm.list_models(pretrained=True) if "." in name else [name]):
        return
    known = timm.list_models() + timm.list_models(pretrained=True)
    wanted = name.lower()
    nearest = difflib.get_close_matches(wanted, known, n=3) or [k for k in known if wanted and k.startswith(wanted)][:3]
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "timm.list_models() lists all names"
    raise InputError(f'architecture "{name}" is not a timm network: {hint}')


def timm_arguments(architecture: str) -> tuple[str, dict[str, bool | int | float | str]]:
    """Split "name?key=value&key=value" into timm's name and the arguments of timm.create_model.

    true, false and numbers get their types. InputError for a part without "=", a key given twice, or a key that the
    experiment decides.
    """
    name, mark, query = architecture.partition("?")
    if not mark:
        return name, {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        pairs = []
    if not pairs:
        raise InputError(f'architecture "{architecture}": after "?" must be key=value, joined by "&"')
    for key, _ in pairs:
        if key in _RESERVED_ARGUMENTS:
            raise InputError(f'architecture "{architecture}" has {key}, which the experiment decides: leave it out')
        if [other for other, _ in pairs].count(key) > 1:
            raise InputError(f'architecture "{architecture}" has {key} more than once: give it once')
    return name, {key: _value(text) for key, text in pairs}


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def check_input_size(architecture: str, input_size: int) -> None:
    """InputError if the network does not take images of this size; runs on meta tensors, without data.

    A user's network also computes two real images: its logits must be finite numbers, one per image.
    """
    if is_own_function(architecture):
        _check_own(architecture, input_size)
    with torch.device("meta"):
        network = make_network(architecture, input_size=input_size)
        try:
            network(torch.empty(2, 1, input_size, input_size))
        except Exception as error:  # architectures raise errors of different types at an unsuitable size
            raise InputError(
                f"architecture {architecture} takes no images of {input_size} px ({first_line(error)}): "
                "choose another architecture or resolution, or enlarge every image with [training] network_input"
            ) from error


def _check_own(architecture: str, input_size: int) -> None:
    """InputError if a user's network raises, or gives no finite logit per image."""
    rng = torch.get_rng_state()
    network = _build_own(architecture, input_size)
    try:
        logits = network(torch.rand(2, 1, input_size, input_size) * 2 - 1)
    except Exception as error:  # the user's code
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"architecture {architecture} raised {type(error).__name__} for images of {input_size} px "
            f"({first_line(error)}): correct it"
        ) from error
    finally:
        torch.set_rng_state(rng)
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, 1):
        given = f"shape {list(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"architecture {architecture} gives {given} for 2 images of {input_size} px, must be [2, 1]: correct it"
        )
    if not logits.isfinite().all():
        raise InputError(
            f"architecture {architecture} gives NaN or infinite logits for images of {input_size} px: correct it"
        )


def count_parameters(architecture: str, *, input_size: int) -> int:
    """Number of parameters of the network; allocates none of them."""
    with torch.device("meta"):
        network = make_network(architecture, input_size=input_size)
    return sum(parameter.numel() for parameter in network.parameters())


def make_network(
    architecture: str, *, input_size: int | None = None, pretrained: bool = False, weights: Path | None = None
) -> torch.nn.Module:
    """Build the network in training mode; torch's seed determines its random weights.

    architecture: as the module describes. The network maps
    float [B, 1, S, S] to logits [B, 1]. input_size: S in pixels; networks that are built for one size
    (vision transformers) need it, others ignore it. pretrained: use timm's weights, downloaded once. weights: a file to
    use instead (safetensors, or a torch file of tensors), or a folder with `<architecture>.safetensors` (.pth, .pt,
    .bin). With either, timm sums a first layer for colour over its channels, and the classifier is random. InputError
    if the architecture is unknown, cannot be built, or the weights cannot be loaded. A user's function loads its
    weights itself.
    """
    if is_own_function(architecture):
        if pretrained or weights is not None:
            raise InputError(
                f"architecture {architecture} is not timm's, so pretrained and weights cannot start it: load the "
                "weights in the function"
            )
        return _build_own(architecture, input_size)
    check_architecture(architecture)
    if weights is not None:
        return _load_weights(architecture, input_size, _find_weights(weights, architecture))
    if pretrained:
        return _download_weights(architecture, input_size)
    return _build(architecture, input_size)


def normalisation(network: torch.nn.Module) -> tuple[float, float]:
    """Mean and standard deviation of grey pixels in [0, 1] by which the network's input is normalised."""
    config: Any = getattr(network, "pretrained_cfg", None)  # timm sets it on every network of its own
    if not config:
        return _OWN_NORMALISATION
    mean, std = config["mean"], config["std"]
    return sum(mean) / len(mean), sum(std) / len(std)


def _build_own(architecture: str, input_size: int | None) -> torch.nn.Module:
    function = load_function(architecture)
    try:
        network = function(in_chans=1, num_classes=1, input_size=input_size)
    except Exception as error:  # the user's code
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"architecture {architecture} raised {type(error).__name__} ({first_line(error)}): it is called with "
            f"in_chans=1, num_classes=1, input_size={input_size}"
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise InputError(
            f"architecture {architecture} returned a {type(network).__name__}, must be a torch.nn.Module: correct it"
        )
    return network.train()


def _build(architecture: str, input_size: int | None, **options: Any) -> torch.nn.Module:
    name, arguments = timm_arguments(architecture)
    config = timm.get_pretrained_cfg(name)
    options = arguments | options
    if "img_size" not in options and input_size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = input_size
    try:
        network: torch.nn.Module = timm.create_model(name, in_chans=1, num_classes=1, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if options.get("pretrained") or is_out_of_memory(error):
            raise
        at = f" at {input_size} px" if input_size else ""
        raise InputError(
            f"architecture {architecture} cannot be built with one grey channel{at} ({first_line(error)}): "
            "choose another architecture or resolution"
        ) from error
    return network.train()


def _download_weights(architecture: str, input_size: int | None) -> torch.nn.Module:
    if not timm.is_model_pretrained(timm_arguments(architecture)[0]):
        raise InputError(
            f"pretrained = true, but timm has no weights for {architecture}: set pretrained = false or weights = PATH"
        )
    try:
        return _build(architecture, input_size, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:  # the hub's client raises these without a connection or file
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"pretrained weights of {architecture} cannot be downloaded ({first_line(error)}): "
            "set pretrained = false, or weights = PATH to a file of them"
        ) from error


def _find_weights(weights: Path, architecture: str) -> Path:
    architecture = timm_arguments(architecture)[0]
    candidates = [weights / f"{architecture}{suffix}" for suffix in WEIGHT_SUFFIXES] if weights.is_dir() else [weights]
    for path in candidates:
        if path.is_file():
            return path
    raise InputError(
        f"weights = {weights} holds no weights for {architecture}: "
        f"name a file, or a folder with {architecture}.safetensors (or {', '.join(WEIGHT_SUFFIXES[1:])})"
    )


def _load_weights(architecture: str, input_size: int | None, path: Path) -> torch.nn.Module:
    rng = torch.get_rng_state()
    untrained = _build(architecture, input_size)
    torch.set_rng_state(rng)
    try:
        network = _build(architecture, input_size, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except Exception as error:  # other file formats raise errors of many types
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"weights = {path} cannot be loaded into {architecture} ({first_line(error)}): "
            "give a safetensors or torch file of this architecture's tensors"
        ) from error
    missing = _unchanged_parameters(untrained, network)
    if missing:
        raise InputError(
            f"weights = {path} leaves {len(missing)} layers of {architecture} untrained ({missing[0]} first): "
            "give a file of this architecture"
        )
    return network


def _unchanged_parameters(untrained: torch.nn.Module, network: torch.nn.Module) -> list[str]:
    """Names of random parameters that the file of weights did not replace.

    timm loads the tensors that fit and does not report the others, so a file of another architecture would load.
    """
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    classifier = config.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    pairs = zip(untrained.named_parameters(), network.parameters(), strict=True)
    return [
        name
        for (name, before), after in pairs
        if not name.startswith(tuple(f"{head}." for head in heads))
        and before.numel() > 1
        and before.std() > 0  # norms start at constants, which a file may hold as well
        and torch.equal(before, after)
    ]
