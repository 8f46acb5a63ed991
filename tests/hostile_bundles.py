"""Hostile bundles, as changes to a copy of a good bundle of a small causal model."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from tests.damage import (
    MANIFEST,
    WEIGHTS,
    Damage,
    config,
    edit_json,
    fifo,
    file,
    first_tensor,
    folder_instead,
    header,
    in_order,
    json_file,
    link,
    listed,
    manifest,
    manifest_field,
    manifest_text,
    sparse,
    template,
    update_digests,
    weights,
)


def ensemble_of_itself(folder: Path) -> None:
    """An ensemble whose members are links to itself."""
    edit_json(folder / MANIFEST, kind="ensemble", ensemble={"members": 2})
    (folder / "members").mkdir()
    for member in ("0", "1"):
        (folder / "members" / member).symlink_to("..", target_is_directory=True)


def deep_ensemble(folder: Path, depth: int = 30) -> None:
    """Nested ensembles with twice as many members at every level."""
    raw = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    raw |= {"kind": "ensemble", "ensemble": {"members": 2}}
    at = folder
    for _ in range(depth):
        for member in ("0", "1"):
            (at / "members" / member).mkdir(parents=True)
            (at / "members" / member / MANIFEST).write_text(json.dumps(raw), encoding="utf-8")
        at = at / "members/0"
    edit_json(folder / MANIFEST, kind="ensemble", ensemble={"members": 2})
    update_digests(folder)


def many_sparse(folder: Path) -> None:
    """A thousand files of 64 MB."""
    names = [f"notes{n}" for n in range(1000)]
    for name in names:
        sparse(name, 64 * 10**6)(folder)
    edit_json(folder / MANIFEST, files=json.loads((folder / MANIFEST).read_text())["files"] | dict.fromkeys(names, "0"))


LONG_LOOP = "{%% if messages|length > %d %%}{%% for i in range(99999) %%}{%% for j in range(99999) %%}x{%% endfor %%}"
LONG_LOOP += "{%% endfor %%}{%% endif %%}{%% for m in messages %%}{{ m.content }}{%% endfor %%}"
SAFETENSORS_HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'

HOSTILE: dict[str, Damage] = {
    "manifest nested 100,000 deep": manifest_field("metrics", "[" * 100_000 + "]" * 100_000),
    "manifest of objects nested 100,000 deep": manifest_field("training", '{"a":' * 100_000 + "1" + "}" * 100_000),
    "manifest nested 900 deep": manifest_field("metrics", '{"a":' * 900 + "1" + "}" * 900),
    "manifest of 500 MB": sparse(MANIFEST, 500_000_000),
    "manifest that is not UTF-8": manifest_text(b'{"kind": "\xff\xfe"}'),
    "manifest with a huge integer": manifest_field("max_tokens", "9" * 100_000),
    "manifest with a lone surrogate": manifest_field("base_model", '"\\ud800"'),
    "manifest with NaN": manifest_field("metrics", '{"accuracy": NaN}'),
    "manifest with an infinite measurement": manifest_field("metrics", '{"accuracy": -1e999}'),
    "manifest with infinity": manifest_field("beta", "1e999"),
    "manifest with the same key twice": manifest_text('{"kind": "seq2seq", "kind": "scalar"}'),
    "manifest that is a number": manifest_text("1e999"),
    "manifest with a million files": manifest_field(
        "files", "{" + ",".join(f'"f{n}": "{n:064d}"' for n in range(10**6)) + "}"
    ),
    "manifest with forty thousand files": manifest_field(
        "files", "{" + ",".join(f'"f{n}.safetensors": "{n:064d}"' for n in range(40_000)) + "}"
    ),
    "manifest with huge metrics": manifest_field("metrics", "{" + ",".join(f'"{n}":[]' for n in range(10**6)) + "}"),
    "manifest that is a folder": folder_instead(MANIFEST),
    "manifest that is a pipe": fifo(MANIFEST),
    "max_tokens of 10**30": manifest(max_tokens=10**30),
    "negative max_tokens": manifest(max_tokens=-1),
    "format version of 10**30": manifest(format_version=10**30),
    "infinite temperature": manifest_field(
        "calibration",
        '{"margin/sum": {"temperature": 1e999, "mean": 0, "std": 1, "expected_calibration_error": 0}}',
    ),
    "name above the folder": listed("../outside.safetensors"),
    "name of another place": listed("/etc/hostname"),
    "name with NUL": listed("a\0.safetensors"),
    "name with a backslash": listed("..\\outside"),
    "name with a line break": listed("a\nredline: all is well"),
    "name of the folder": listed("."),
    "name that is empty": listed(""),
    "name of 5,000 letters": listed("a" * 5000),
    "file that is a pipe": fifo("config.json"),
    "file that is listed nowhere and a pipe": fifo("special_tokens_map.json"),
    "file that is a folder": folder_instead("tokenizer.json"),
    "files of 64 GB that take no room": many_sparse,
    "link out of the folder": link("README.md", "/etc/hostname"),
    "weights that are a link to a device": in_order(
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / WEIGHTS).symlink_to("/dev/zero"),
    ),
    "ensemble of a thousand million": manifest(kind="ensemble", ensemble={"members": 10**9}),
    "ensemble of itself": ensemble_of_itself,
    "ensembles thirty deep": deep_ensemble,
    "header that claims 10 GB": weights(struct.pack("<Q", 10 * 2**30) + SAFETENSORS_HEADER + b"\0" * 4),
    "header that claims 2**64 - 1": weights(b"\xff" * 8 + SAFETENSORS_HEADER + b"\0" * 4),
    "header of 90 MB": weights(struct.pack("<Q", 90_000_000) + b"{" + b" " * 89_999_998 + b"}"),
    "header of many empty lists": weights(
        struct.pack("<Q", 30_000_012) + b'{"a":[' + b"[]," * 10_000_000 + b"[]]  }" + b"\0" * 4
    ),
    "header nested 100,000 deep": weights(struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000),
    "header that is not JSON": weights(struct.pack("<Q", 8) + b"\xff" * 8),
    "header that is a list": weights(struct.pack("<Q", 2) + b"[]"),
    "weights that are empty": weights(b""),
    "weights of three bytes": weights(b"abc"),
    "header without tensors": weights(struct.pack("<Q", 2) + b"{}"),
    "tensor of petabytes": first_tensor(shape=[2**30, 2**30]),
    "tensor whose size overflows": first_tensor(shape=[2**63, 2**63, 0]),
    "tensor with a negative size": first_tensor(shape=[-400, -64]),
    "tensor with sizes that are no numbers": first_tensor(shape=["a", None]),
    "tensor of another dtype": first_tensor(dtype="F16"),
    "tensor of an unknown dtype": first_tensor(dtype="F128"),
    "tensor of integers": first_tensor(dtype="I32"),
    "tensor beyond the end": first_tensor(data_offsets=[0, 2**50]),
    "tensor before the beginning": first_tensor(data_offsets=[-4, 102_396]),
    "tensors that overlap": header(
        lambda described: described["model.norm.weight"].update(described["model.layers.0.input_layernorm.weight"])
    ),
    "tensors cut off": in_order(
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]) and None, update_digests
    ),
    "config nested 100,000 deep": file("config.json", "[" * 100_000 + "]" * 100_000),
    "config of 500 MB": in_order(sparse("config.json", 500_000_000), update_digests),
    "config that is a list": file("config.json", "[]"),
    "config that is not UTF-8": file("config.json", b'{"model_type": "\xff"}'),
    "config of an unknown model": config(model_type="no-such-model"),
    "config without a model": file("config.json", "{}"),
    "config whose model is no text": config(model_type={"a": 1}),
    "hidden size of 10**9": config(hidden_size=10**9),
    "hidden size that is text": config(hidden_size="64"),
    "hidden size of 0": config(hidden_size=0),
    "negative hidden size": config(hidden_size=-64),
    "no attention heads": config(num_attention_heads=0),
    "10**9 attention heads": config(num_attention_heads=10**9, num_key_value_heads=10**9, head_dim=1),
    "a million layers": config(num_hidden_layers=10**6),
    "10**9 layers": config(num_hidden_layers=10**9),
    "10**9 layers of qwen2": config(model_type="qwen2", num_hidden_layers=10**9),
    "vocabulary of 10**9": config(vocab_size=10**9),
    "vocabulary larger than the table": config(vocab_size=401),
    "intermediate size of 10**9": config(intermediate_size=10**9),
    "gpt2 with 10**6 positions": config(
        model_type="gpt2", n_positions=10**6, n_embd=64, n_layer=2, n_head=4, max_position_embeddings=10**6
    ),
    "xglm with 10**9 positions": config(
        model_type="xglm", max_position_embeddings=10**9, d_model=64, num_layers=2, attention_heads=4
    ),
    "mixtral with 10**9 experts": config(model_type="mixtral", num_local_experts=10**9),
    "rope of an unknown type": config(rope_parameters={"rope_type": "none such", "rope_theta": 1e4}),
    "activation that does not exist": config(hidden_act="no such"),
    "attention from the hub": config(attn_implementation="someone/some-kernel"),
    "attention from the hub, the other way": config(_attn_implementation_internal="someone/some-kernel"),
    "weights by a sharded index out of the folder": in_order(
        lambda f: (f / WEIGHTS).rename(f / "other.safetensors") and None,
        file(
            "model.safetensors.index.json",
            json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "../../../etc/hostname"}}),
        ),
    ),
    "adapter of another model": file(
        "adapter_config.json", json.dumps({"base_model_name_or_path": "someone/else", "peft_type": "LORA"})
    ),
    "generation config that is a list": file("generation_config.json", "[]"),
    "generation config nested 100,000 deep": file("generation_config.json", "[" * 100_000 + "]" * 100_000),
    "tokenizer nested 100,000 deep": file("tokenizer.json", "[" * 100_000 + "]" * 100_000),
    "tokenizer of 500 MB": in_order(sparse("tokenizer.json", 500_000_000), update_digests),
    "tokenizer that is empty": file("tokenizer.json", ""),
    "tokenizer without a model": file("tokenizer.json", "{}"),
    "tokenizer of an unknown model": file("tokenizer.json", '{"model": {"type": "none such"}}'),
    "tokenizer that is a list": file("tokenizer.json", "[1, 2]"),
    "tokenizer config nested 100,000 deep": file("tokenizer_config.json", "[" * 100_000 + "]" * 100_000),
    "tokenizer config that is a list": file("tokenizer_config.json", "[]"),
    "tokenizer class that is no text": json_file("tokenizer_config.json", tokenizer_class=7),
    "end token that is a list": json_file("tokenizer_config.json", eos_token=["a", "b"]),
    "no end token": json_file("tokenizer_config.json", eos_token=None),
    "template with a power": template("{{ 9**9**9 }}"),
    "template with a power that is not reached": template("{% if false %}{{ messages|length ** 9 }}{% endif %}"),
    "template with a loop in a loop": template(LONG_LOOP % 0),
    "template with a loop on the day that scores are of": template(
        "{% if strftime_now('%Y') == '2025' %}" + LONG_LOOP % 0 + "{% endif %}"
    ),
    "template with a loop for tools": template(
        "{% if tools %}" + LONG_LOOP % 0 + "{% endif %}{{ messages[0].content }}"
    ),
    "template with a loop for calls of tools": template(
        "{% if messages[-1].role == 'tool' %}" + LONG_LOOP % 0 + "{% endif %}{{ messages[0].content }}"
    ),
    "template with a loop for three turns": template(LONG_LOOP % 3),
    "template with a loop for eight turns": template(LONG_LOOP % 8),
    "template with a loop for sixty turns": template(LONG_LOOP % 60),
    "template with a long text": template("{{ 'a' * 10**10 }}"),
    "template with a long text by a product": template("{{ 'a' * 10000000000 }}"),
    "template with a long text at run time": template("{{ 'a' * (100000 * 100000 * messages|length) }}"),
    "template that doubles": template(
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}"
    ),
    "template that calls itself": template("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}"),
    "template that is nested": template("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"),
    "template with blocks nested": template("{% if 1 %}" * 5_000 + "{% endif %}" * 5_000),
    "template of 50 MB": template("{{ a }}" * 7_000_000),
    "template with a wide format": template("{{ '%10000000000d' % 1 }}"),
    "template with a wide filter": template("{{ 'a'|center(10000000000) }}"),
    "template with a large list": template("{{ (range(99999)|list * 99999)|length }}"),
    "template with an answer of 20 MB": template(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% for i in range(2000) %}{{ 'a' * 10000 }}{% endfor %}"
    ),
    "template that divides by zero": template("{{ 1 / 0 }}"),
    "template in the tokenizer's configuration": in_order(
        lambda f: (f / "chat_template.jinja").unlink(),
        json_file("tokenizer_config.json", chat_template="{{ 9**9**9 }}"),
    ),
    "template for the manifest's own settings": in_order(
        template(
            "{% if bomb is defined %}" + LONG_LOOP % 0 + "{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
        ),
        lambda f: edit_json(
            f / MANIFEST,
            template={
                **json.loads((f / MANIFEST).read_text(encoding="utf-8"))["template"],
                "chat_kwargs": {"bomb": 1},
            },
        ),
    ),
    "turn that is no format": manifest(template={"style": "plain", "turn": "{role.__class__.__mro__}"}),
    "turn of 10**9 blanks": manifest(template={"style": "plain", "turn": "{role:>1000000000}"}),
    "settings that clash": manifest(template={"style": "chat", "chat_kwargs": {"tokenize": True, "conversation": 1}}),
}

# bundles that are refused only after seconds: the time limit of a template, or their size
SLOW_BUNDLES = {
    "template with a loop for three turns",
    "template with a loop for sixty turns",
    "template for the manifest's own settings",
    "manifest with a million files",
    "manifest with huge metrics",
    "template of 50 MB",
}
