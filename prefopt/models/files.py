"""The files of a model, before any weight is loaded: what is there, what is missing, what was probably meant."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open

from prefopt.errors import RequestError, nearest
from prefopt.files import check_can_be_named, read_json

if TYPE_CHECKING:  # requests are checked before torch is loaded
    from torch import Tensor

SAFE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"


def expanded(name: str) -> str:
    """A folder or hub name as transformers and PEFT take it: they do not know `~`."""
    return os.path.expanduser(name)


def looks_like_path(name: str) -> bool:
    """Whether a name can be no hub's."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1


def is_adapter(name: str) -> bool:
    return find(name, "adapter_config.json") is not None and find(name, "config.json") is None


def is_classifier(name: str, key: str) -> bool:
    named = (stored_json(name, "config.json", key) or {}).get("architectures")
    return isinstance(named, list) and str(*named[:1]).endswith("ForSequenceClassification")


def stored_json(name: str, file: str, key: str) -> dict[str, Any] | None:
    """A JSON file of a folder or hub name; None where there is none."""
    path = find(name, file)
    return read_json(Path(path), f"{key}={name}") if path else None


def find(name: str, file: str) -> str | None:
    """Where a file of a folder or hub name lies on this machine, fetched if need be; None where there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return str(path) if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        return cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        return None


def check_folder(name: str, key: str) -> None:
    """Refuse, with what was probably meant, a path that holds no model."""
    path = Path(name)
    check_can_be_named(path, f"{key}={name}")
    if not path.is_dir():
        _check_missing(path, name, key)
        return
    if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise RequestError(f"{key}={name}: no config.json there, so no model{_meant(path)}")


def check_local(name: str, key: str) -> None:
    """What can be told of a folder's files at once; a hub name is not looked up."""
    name = expanded(name)
    check_folder(name, key)
    if (Path(name) / "config.json").is_file():
        check_weights(name, key)


def need_bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RequestError("model.quant needs bitsandbytes: pip install 'prefopt[quant]'")


def check_weights(name: str, key: str) -> None:
    """Weights as safetensors, and nothing else: other formats run code when they are read."""
    if find(name, SAFE) or find(name, INDEX):
        return
    if any(find(name, file) for file in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        raise RequestError(
            f"{key}={name} holds pytorch_model.bin, which can run code when read; load it once where you trust it and "
            "save_pretrained() writes safetensors"
        )
    raise RequestError(f"{key}={name}: a config but no weights; {SAFE} is missing")


def stored_weights(name: str, key: str, adapter: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every stored tensor by name, in the order of names, one at a time."""
    for tensor, path in sorted(_places(name, key, adapter).items()):
        with safe_open(path, framework="pt") as file:
            yield tensor, file.get_tensor(tensor)


def stored_tensor(name: str, key: str, tensor: str) -> Tensor | None:
    path = _places(name, key).get(tensor)
    if path is None:
        return None
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(tensor)


def _places(name: str, key: str, adapter: bool = False) -> dict[str, str]:
    """The file of every stored tensor."""
    whole = find(name, ADAPTER if adapter else SAFE)
    if whole is not None:
        with safe_open(whole, framework="pt") as file:
            return dict.fromkeys(file.keys(), whole)
    index = None if adapter else stored_json(name, INDEX, key)
    if index is None:
        raise RequestError(f"{key}={name}: no {ADAPTER if adapter else SAFE} there")
    shards = {shard: find(name, shard) for shard in set(index["weight_map"].values())}
    for shard, path in shards.items():
        if path is None:
            raise RequestError(f"{key}={name}: {shard} is missing, which {INDEX} names")
    return {tensor: str(shards[shard]) for tensor, shard in index["weight_map"].items()}


def _check_missing(path: Path, name: str, key: str) -> None:
    """A hub name is no folder, so only what can be nothing but a path is refused here."""
    near = _meant(path)
    if looks_like_path(name) or (near and path.parent != Path()):
        raise RequestError(f"{key}={name}: no such folder{near}")
    if constants.HF_HUB_OFFLINE and not any(_cached(name, file) for file in ("config.json", "adapter_config.json")):
        raise RequestError(f"{key}={name}: no such folder{near}, nor in the hub's cache, which is all there is offline")


def _cached(name: str, file: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, file), str)
    except HFValidationError:
        return False


def _meant(path: Path) -> str:
    """The model inside the folder (a run's, say), else the sibling with the nearest name."""
    inside = sorted(p.parent for p in path.glob("*/*config.json") if _is_model(p.parent))
    if inside:
        return f"; did you mean {str(inside[0])!r}?"
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    return nearest(path.name, [p.name for p in siblings if p != path and p.is_dir() and _is_model(p)])


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
