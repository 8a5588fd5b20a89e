"""Pretrained weights of timm's hub: whether they are kept on this machine, and whether the hub can be reached.

Without a network the hub's library tries for about a minute. So the hub is asked once, with little patience, before
anything is fetched. What the user set in the environment for that library holds: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME,
proxies, and HF_HUB_ETAG_TIMEOUT for the patience.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cam_pipeline.errors import WeightsError, one_line
from cam_pipeline.models.mit import MIX_TRANSFORMERS, mix_transformer_weights

SECONDS = 4.0
"""How long to wait for the hub's answer."""

REMEMBERED = 60.0
"""Seconds for which its answer, or its silence, holds."""

NO_ANSWER = "no answer in"

_asked: dict[str, tuple[float, str]] = {}


def check_pretrained(key: str, name: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Raise WeightsError if timm's weights of a model are neither on this machine nor can be fetched.

    `key`: the setting that asks for them; `arguments`: those of the model. Nothing is fetched.
    """
    if message := missing(name, arguments or {}):
        raise WeightsError(f"{key}: {message}")


def cannot_be_loaded(name: str, reason: str) -> str:
    """The line that says why the pretrained weights of a model cannot be loaded, and what to do."""
    return (
        f"the pretrained weights of '{name}' cannot be loaded ({reason}); connect to the network once, or set weights "
        "to a file, or to 'none' to start from random weights"
    )


def missing(name: str, arguments: Mapping[str, Any], patience: float | None = None) -> str:
    """The line that says why timm's weights of a model cannot be had.

    "" if they can, as far as can be known without fetching them, and for a name or a tag that timm does not know.
    `patience`: seconds to wait for the hub; None: as many as before fetching.
    """
    from huggingface_hub import constants

    described = _described(name, arguments)
    if described is None:
        return ""
    address = str(constants.ENDPOINT if described.hf_hub_id else described.url or "")
    if not address:
        return (
            f"timm has no pretrained weights of '{name}'; set weights to a file, or to 'none' to start from random ones"
        )
    if _is_kept(described, arguments.get("cache_dir")):
        return ""
    if described.hf_hub_id and constants.HF_HUB_OFFLINE:
        return cannot_be_loaded(name, "they are not on this machine, and HF_HUB_OFFLINE is set")
    if silence := unreachable(address, patience):
        host = urlsplit(address).netloc
        return cannot_be_loaded(name, f"they are not on this machine, and {host} cannot be reached: {silence}")
    return ""


def are_kept(name: str, arguments: Mapping[str, Any]) -> bool:
    """True if timm's weights of a model are on this machine."""
    described = _described(name, arguments)
    return described is not None and _is_kept(described, arguments.get("cache_dir"))


def _described(name: str, arguments: Mapping[str, Any]) -> Any:
    """What timm knows about the weights of a model; None for a name or a tag that it does not know."""
    import timm

    if name in MIX_TRANSFORMERS:
        return mix_transformer_weights(name)
    tag = arguments.get("pretrained_cfg")
    try:
        return timm.models.get_pretrained_cfg(f"{name.split('.')[0]}.{tag}" if tag else name)
    except RuntimeError:  # the tag
        return None


def _is_kept(described: Any, cache: str | None) -> bool:
    """True if the weights that timm describes are in the hub's cache, or in torch's."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    if described.url and (not described.hf_hub_id or os.environ.get("TIMM_USE_OLD_CACHE")):
        folder = Path(cache) if cache else Path(torch.hub.get_dir(), "checkpoints")
        if (folder / Path(urlsplit(str(described.url)).path).name).is_file():
            return True
    if not described.hf_hub_id:
        return False
    repository, _, revision = described.hf_hub_id.partition("@")
    names = [described.hf_hub_filename] if described.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    found = [try_to_load_from_cache(repository, one, cache_dir=cache, revision=revision or None) for one in names]
    return any(isinstance(path, str) for path in found)


def unreachable(address: str, patience: float | None = None) -> str:
    """Why an address does not answer; "" if it does. `patience` as in `missing`."""
    now = time.monotonic()
    asked, silence = _asked.get(address, (-REMEMBERED, ""))
    if address not in _asked or now - asked > REMEMBERED:
        silence = _ask(address, patience)
        _asked[address] = (now, silence)
    return silence


def _ask(address: str, patience: float | None) -> str:
    """Ask for a page's head. In a thread, as nothing limits the time that looking up a name takes."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    if patience is None:
        patience = float(constants.HF_HUB_ETAG_TIMEOUT) if os.environ.get("HF_HUB_ETAG_TIMEOUT") else SECONDS
    answer: list[str] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=patience)
            answer.append("")
        except Exception as error:  # of several libraries
            answer.append(one_line(str(error) or type(error).__name__)[:160])

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return answer[0] if answer else f"{NO_ANSWER} {patience:g} seconds"


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Inside, the hub's library logs no attempts, and makes none if the hub cannot be reached.

    Weights that are on this machine are then loaded without asking whether there are newer ones.
    """
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    levels = [one.level for one in loggers]
    offline = constants.HF_HUB_OFFLINE
    for one in loggers:
        one.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = offline or bool(unreachable(constants.ENDPOINT))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
