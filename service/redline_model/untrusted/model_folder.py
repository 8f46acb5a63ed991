"""Whether a model's folder may be given to transformers: no code of its own, no sizes that its weights do not have.

transformers builds whatever a configuration describes before it looks at the weights, and makes up what they lack.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook

from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import check_size, one_line, read_object
from redline_model.untrusted.folder_listing import MAX_FILE_BYTES
from redline_model.untrusted.pickle_check import checkpoint_tensors
from redline_model.untrusted.weight_headers import INDEX

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER_CONFIG = "adapter_config.json"
_SMALL_FILES = (CONFIG, TOKENIZER_CONFIG, "generation_config.json", "special_tokens_map.json", "added_tokens.json")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
_MAX_VALUES = 100_000  # of a small file; the settings of ten thousand added tokens are 80,000
_TEMPLATE_BYTES = 2**20
_MAX_TEMPLATES = 64

# Counts of things that are built one by one when a configuration is read, before there is a model.
_IS_COUNT = re.compile(r"layer|depth|block|expert|head|label|group|stage|branch")
_IS_SIZE = re.compile(r"size|dim|chunk|capacity|length|token")
_MAX_COUNT = 65_536
_MAX_NUMBER = 10**12  # of any other; sums of a few stay within 64 bits
# families that compute a table of positions number by number, and how many numbers that may be
_SLOW_POSITIONS = {"marian", "pegasus", "roformer", "xlm", "flaubert", "distilbert"}
_MAX_SLOW_POSITIONS = 2**22
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")

_MAX_MODULES = 20_000  # and two for each tensor
_SPARE_ELEMENTS = 2**24  # what a model may hold beyond twice its weights: a new head, say
_SPARE_BUFFER_BYTES = 2**28


def no_code(source: str | Path) -> str:
    """Why a source that needs code of its own is refused."""
    return f"{source} needs code of its own, and Redline does not run code from model folders"


def check_folder(folder: Path) -> dict[str, Any]:
    """The model's configuration as it stands in a local folder, after the small files of the folder were checked.

    Raises:
        BundleError: a file is too large, no regular file or no JSON object, the folder is an adapter's, or the model
            needs code of its own.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise BundleError(_adapter(folder))
    small = {
        name: read_object(folder / name, max_values=_MAX_VALUES) for name in _SMALL_FILES if (folder / name).exists()
    }
    for name in (*_TOKENIZER_FILES, INDEX):
        if (folder / name).exists():
            check_size(folder / name, MAX_FILE_BYTES)
    more = sorted(islice((folder / "additional_chat_templates").glob("*.jinja"), _MAX_TEMPLATES + 1))
    if len(more) > _MAX_TEMPLATES:
        raise BundleError(f"{folder} holds more than {_MAX_TEMPLATES} additional chat templates")
    for path in (folder / "chat_template.jinja", *more):
        if path.exists():
            check_size(path, _TEMPLATE_BYTES)
    config = small.get(CONFIG, {})
    if config.get("transformers_weights") is not None:
        raise BundleError(f"{folder / CONFIG}: transformers_weights names other weights than the usual ones")
    _check_code(folder, config, small.get(TOKENIZER_CONFIG, {}))
    _check_numbers(folder / CONFIG, config)
    return config


def check_weights(folder: Path, config: Any, model_class: Any, *, is_quantized: bool = False) -> None:
    """Compare what a configuration describes with what the folder's weights hold, in safetensors or PyTorch's format.

    Args:
        config: as transformers has read it; a folder without weights is not compared.

    Raises:
        BundleError: the weights are damaged, or the configuration describes a much larger model.
    """
    held = checkpoint_tensors(folder)
    if held is None:
        return
    model = described_model(folder, config, model_class, tensors=len(held))
    integers = [name for name, _ in model.named_parameters() if name in held and held[name].dtype[0] in "IU"]
    if integers and not is_quantized:
        raise BundleError(f"the weights in {folder} are not those of a model: {integers[0]} holds integers")
    # weights of 4 bits may be packed by eights
    real = sum(tensor.elements for tensor in held.values())
    elements = real * (16 if is_quantized else 2)
    described = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if described > elements + _SPARE_ELEMENTS:
        raise BundleError(f"{folder / CONFIG} describes a model of {described} weights, and the folder holds {real}")
    if buffers > 4 * elements + _SPARE_BUFFER_BYTES:
        raise BundleError(f"{folder / CONFIG} describes a model with tables of {buffers} bytes beside its weights")


def described_model(folder: Path, config: Any, model_class: Any, tensors: int = 0) -> Any:
    """The model that a configuration describes, without memory for its weights. Raises BundleError."""
    try:
        with _at_most_modules(_MAX_MODULES + 2 * tensors), torch.device("meta"), _safe_creation():
            return model_class.from_config(config, trust_remote_code=False)
    except Exception as error:  # configurations fail in as many ways as there are model classes
        if "trust_remote_code" in str(error):
            raise BundleError(no_code(folder)) from error
        raise BundleError(f"{folder / CONFIG} describes no model that can be built: {one_line(error)}") from error


def _adapter(folder: Path) -> str:
    """Why an adapter's folder is refused: its base would be loaded from wherever it says."""
    try:
        base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    except BundleError:
        base = None
    named = f" of {one_line(repr(base))}" if isinstance(base, str) else ""
    return (
        f"{folder} holds {ADAPTER_CONFIG}: it is an adapter{named}, and an adapter has to be merged into its model "
        "first (peft: AutoPeftModelForCausalLM, then merge_and_unload and save_pretrained into another folder)"
    )


def _check_code(folder: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    family = config.get("model_type")
    if family is not None and not isinstance(family, str):
        raise BundleError(f"{folder / CONFIG}: model_type is no text")
    if config.get("auto_map") and family not in CONFIG_MAPPING:
        raise BundleError(no_code(folder))
    name = tokenizer.get("tokenizer_class")
    if tokenizer.get("auto_map") and isinstance(name, str):
        whole = name.removesuffix("Fast")
        if tokenizer_class_from_name(whole) is None and tokenizer_class_from_name(f"{whole}Fast") is None:
            raise BundleError(no_code(folder))
    for part in _parts(config):
        for name, value in part.items():
            # a name with a slash is a kernel on the hub, to be downloaded and run
            if name.startswith(_KERNELS) and "/" in str(value):
                raise BundleError(f"{no_code(folder)}: {name} is {one_line(repr(value))}")


def _check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    for part in _parts(config):
        for name, value in part.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            is_count = bool(_IS_COUNT.search(name)) and not _IS_SIZE.search(name)
            if isinstance(value, int) and not -_MAX_NUMBER <= value <= (_MAX_COUNT if is_count else _MAX_NUMBER):
                raise BundleError(f"{path}: {one_line(name)} is {one_line(value)}, which no model has")
        if part.get("model_type") in _SLOW_POSITIONS:
            width = max(
                (part[name] for name in ("d_model", "hidden_size", "emb_dim", "dim") if _is_int(part, name)), default=1
            )
            places = [value for name, value in part.items() if "position" in name and _is_int(part, name)]
            if max(places, default=1) * width > _MAX_SLOW_POSITIONS:
                raise BundleError(f"{path}: a table of {max(places)} positions is too large")


def _is_int(part: Mapping[str, Any], name: str) -> bool:
    return isinstance(part.get(name), int)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration and those inside it."""
    pending: list[Any] = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, Mapping):
            yield part
            pending += part.values()
        elif isinstance(part, list):
            pending += part


@contextmanager
def _at_most_modules(limit: int) -> Iterator[None]:
    """Stop a model's construction in this thread after so many modules."""
    thread, count = threading.get_ident(), 0

    def counted(module: Any, name: str, inner: Any) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > limit:
                raise ValueError(f"it has more than {limit} modules")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _safe_creation() -> Iterator[None]:
    """What transformers itself does where it builds a model without memory: tables of a few numbers are real."""
    try:
        from transformers.initialization import meta_device_safe_creation_ops
    except ImportError:
        yield
        return
    with meta_device_safe_creation_ops():
        yield
