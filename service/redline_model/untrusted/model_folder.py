"""Check a model's folder before transformers reads it: no code of its own, and no sizes that its weights do not have.

transformers builds whatever a configuration describes before it reads the weights, and initialises missing weights.
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
_MAX_VALUES = 100_000  # of a small file; the settings of ten thousand added tokens have 80,000 values
_TEMPLATE_BYTES = 2**20
_MAX_TEMPLATES = 64

# Names of counts: transformers creates so many objects when it reads a configuration.
_COUNT_NAME = re.compile(r"layer|depth|block|expert|head|label|group|stage|branch")
_SIZE_NAME = re.compile(r"size|dim|chunk|capacity|length|token")
_MAX_COUNT = 65_536
_MAX_NUMBER = 10**12  # of any other number; sums of a few of them fit into 64 bits
# model families that compute a table of positions in a Python loop, and the largest allowed table
_SLOW_POSITIONS = {"marian", "pegasus", "roformer", "xlm", "flaubert", "distilbert"}
_MAX_SLOW_POSITIONS = 2**22
_KERNEL_SETTINGS = ("attn_implementation", "_attn_implementation", "experts_implementation")

_MAX_MODULES = 20_000  # plus two per tensor
_SPARE_ELEMENTS = 2**24  # what a model may have beyond twice its weights, for example a new head
_SPARE_BUFFER_BYTES = 2**28


def code_refusal(source: str | Path) -> str:
    """The error message for a source that needs its own code."""
    return f"{source} needs code of its own, and Redline does not run code from model folders"


def check_folder(folder: Path) -> dict[str, Any]:
    """Check the small files of a local folder and return the model's configuration as a dictionary.

    Raises:
        BundleError: a file is too large, not a regular file or not a JSON object, the folder has an adapter, or the
            model needs its own code.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise BundleError(_adapter_refusal(folder))
    small = {
        name: read_object(folder / name, max_values=_MAX_VALUES) for name in _SMALL_FILES if (folder / name).exists()
    }
    for name in (*_TOKENIZER_FILES, INDEX):
        if (folder / name).exists():
            check_size(folder / name, MAX_FILE_BYTES)
    extra_templates = sorted(islice((folder / "additional_chat_templates").glob("*.jinja"), _MAX_TEMPLATES + 1))
    if len(extra_templates) > _MAX_TEMPLATES:
        raise BundleError(f"{folder} holds more than {_MAX_TEMPLATES} additional chat templates")
    for path in (folder / "chat_template.jinja", *extra_templates):
        if path.exists():
            check_size(path, _TEMPLATE_BYTES)
    config = small.get(CONFIG, {})
    if config.get("transformers_weights") is not None:
        raise BundleError(f"{folder / CONFIG}: transformers_weights names other weights than the usual ones")
    _check_code(folder, config, small.get(TOKENIZER_CONFIG, {}))
    _check_numbers(folder / CONFIG, config)
    return config


def check_weights(folder: Path, config: Any, model_class: Any, *, is_quantized: bool = False) -> None:
    """Compare the model that a configuration describes with the folder's weights (safetensors or PyTorch's format).

    Args:
        config: the transformers configuration. A folder without weights is not compared.

    Raises:
        BundleError: the weights are damaged, or the configuration describes a much larger model.
    """
    stored = checkpoint_tensors(folder)
    if stored is None:
        return
    model = described_model(folder, config, model_class, tensors=len(stored))
    integers = [name for name, _ in model.named_parameters() if name in stored and stored[name].dtype[0] in "IU"]
    if integers and not is_quantized:
        raise BundleError(f"the weights in {folder} are not those of a model: {integers[0]} holds integers")
    # weights of 4 bits may be packed, eight in one number
    actual = sum(tensor.elements for tensor in stored.values())
    elements = actual * (16 if is_quantized else 2)
    described_size = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if described_size > elements + _SPARE_ELEMENTS:
        raise BundleError(
            f"{folder / CONFIG} describes a model of {described_size} weights, and the folder holds {actual}"
        )
    if buffers > 4 * elements + _SPARE_BUFFER_BYTES:
        raise BundleError(f"{folder / CONFIG} describes a model with tables of {buffers} bytes besides its weights")


def described_model(folder: Path, config: Any, model_class: Any, tensors: int = 0) -> Any:
    """The model that a configuration describes, on the meta device (no memory for weights). Raises BundleError."""
    try:
        with _at_most_modules(_MAX_MODULES + 2 * tensors), torch.device("meta"), _safe_creation():
            return model_class.from_config(config, trust_remote_code=False)
    except Exception as error:  # every model class has its own checks and errors
        if "trust_remote_code" in str(error):
            raise BundleError(code_refusal(folder)) from error
        raise BundleError(f"{folder / CONFIG} describes no model that can be built: {one_line(error)}") from error


def _adapter_refusal(folder: Path) -> str:
    """The error message for an adapter's folder: loading it would also load its base, from any place that it names."""
    try:
        base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    except BundleError:
        base = None
    base_name = f" of {one_line(repr(base))}" if isinstance(base, str) else ""
    return (
        f"{folder} holds {ADAPTER_CONFIG}: it is an adapter{base_name}, and an adapter has to be merged into its model "
        "first (peft: AutoPeftModelForCausalLM, then merge_and_unload and save_pretrained into another folder)"
    )


def _check_code(folder: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    family = config.get("model_type")
    if family is not None and not isinstance(family, str):
        raise BundleError(f"{folder / CONFIG}: model_type is not text")
    if config.get("auto_map") and family not in CONFIG_MAPPING:
        raise BundleError(code_refusal(folder))
    name = tokenizer.get("tokenizer_class")
    if tokenizer.get("auto_map") and isinstance(name, str):
        class_name = name.removesuffix("Fast")
        if tokenizer_class_from_name(class_name) is None and tokenizer_class_from_name(f"{class_name}Fast") is None:
            raise BundleError(code_refusal(folder))
    for part in _parts(config):
        for name, value in part.items():
            # a name with a slash is a kernel on the hub, which would be downloaded and run
            if name.startswith(_KERNEL_SETTINGS) and "/" in str(value):
                raise BundleError(f"{code_refusal(folder)}: {name} is {one_line(repr(value))}")


def _check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    for part in _parts(config):
        for name, value in part.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            is_count = bool(_COUNT_NAME.search(name)) and not _SIZE_NAME.search(name)
            if isinstance(value, int) and not -_MAX_NUMBER <= value <= (_MAX_COUNT if is_count else _MAX_NUMBER):
                raise BundleError(f"{path}: {one_line(name)} is {one_line(value)}, which no model has")
        if part.get("model_type") in _SLOW_POSITIONS:
            width = max(
                (part[name] for name in ("d_model", "hidden_size", "emb_dim", "dim") if _is_int(part, name)), default=1
            )
            position_counts = [value for name, value in part.items() if "position" in name and _is_int(part, name)]
            if max(position_counts, default=1) * width > _MAX_SLOW_POSITIONS:
                raise BundleError(f"{path}: a table of {max(position_counts)} positions is too large")


def _is_int(part: Mapping[str, Any], name: str) -> bool:
    return isinstance(part.get(name), int)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration and all nested ones."""
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
    """Stop the construction of a model in this thread after ``limit`` modules."""
    thread, count = threading.get_ident(), 0

    def count_module(module: Any, name: str, inner: Any) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > limit:
                raise ValueError(f"it has more than {limit} modules")

    handle = register_module_module_registration_hook(count_module)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _safe_creation() -> Iterator[None]:
    """As transformers does when it builds a model on the meta device: small tables get real memory."""
    try:
        from transformers.initialization import meta_device_safe_creation_ops
    except ImportError:
        yield
        return
    with meta_device_safe_creation_ops():
        yield
