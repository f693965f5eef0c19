"""Build timm networks for radiographs, with one grey channel as input and one logit as output."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch

from acuity.objectives.device.memory import is_out_of_memory
from acuity.objectives.errors import InputError, first_line

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def check_architecture(name: str) -> None:
    """InputError with the nearest known names if timm has no network of this name."""
    if timm.is_model(name) and name in (timm.list_models(pretrained=True) if "." in name else [name]):
        return
    known = timm.list_models() + timm.list_models(pretrained=True)
    wanted = name.lower()
    nearest = difflib.get_close_matches(wanted, known, n=3) or [k for k in known if wanted and k.startswith(wanted)][:3]
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "timm.list_models() lists all names"
    raise InputError(f'architecture "{name}" is not a timm network: {hint}')


def check_input_size(architecture: str, input_size: int) -> None:
    """InputError if the network does not take images of this size; runs on meta tensors, without data."""
    with torch.device("meta"):
        network = make_network(architecture, input_size=input_size)
        try:
            network(torch.empty(2, 1, input_size, input_size))
        except Exception as error:  # architectures raise errors of different types at an unsuitable size
            raise InputError(
                f"architecture {architecture} takes no images of {input_size} px ({first_line(error)}): "
                "choose another architecture or resolution, or enlarge every image with [training] network_input"
            ) from error


def count_parameters(architecture: str, *, input_size: int) -> int:
    """Number of parameters of the network; allocates none of them."""
    with torch.device("meta"):
        network = make_network(architecture, input_size=input_size)
    return sum(parameter.numel() for parameter in network.parameters())


def make_network(
    architecture: str, *, input_size: int | None = None, pretrained: bool = False, weights: Path | None = None
) -> torch.nn.Module:
    """Build the network in training mode; torch's seed determines its random weights.

    The network maps float [B, 1, S, S] to logits [B, 1]. input_size: S in pixels; networks that are built for one size
    (vision transformers) need it, others ignore it. pretrained: use timm's weights, downloaded once. weights: a file to
    use instead (safetensors, or a torch file of tensors), or a folder with `<architecture>.safetensors` (.pth, .pt,
    .bin). With either, timm sums a first layer for colour over its channels, and the classifier is random. InputError
    if the architecture is unknown, cannot be built, or the weights cannot be loaded.
    """
    check_architecture(architecture)
    if weights is not None:
        return _load_weights(architecture, input_size, _find_weights(weights, architecture))
    if pretrained:
        return _download_weights(architecture, input_size)
    return _build(architecture, input_size)


def normalisation(network: torch.nn.Module) -> tuple[float, float]:
    """Mean and standard deviation of grey pixels in [0, 1] by which the network's input is normalised."""
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every network
    mean, std = config["mean"], config["std"]
    return sum(mean) / len(mean), sum(std) / len(std)


def _build(architecture: str, input_size: int | None, **options: Any) -> torch.nn.Module:
    config = timm.get_pretrained_cfg(architecture)
    if input_size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = input_size
    try:
        network: torch.nn.Module = timm.create_model(architecture, in_chans=1, num_classes=1, **options)
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
    if not timm.is_model_pretrained(architecture):
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
