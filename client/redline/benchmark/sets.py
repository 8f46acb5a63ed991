"""The known sets of the benchmark: licences, and the digests of the published files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from redline.files.digest import file_digest


class KnownSet(NamedTuple):
    """A set of the benchmark: a file of preference pairs, with its licence and the SHA-256 of the published file.

    ``has_spans``: whether people marked (or changed) words of the rejected responses, so that it is for localisation.
    """

    name: str
    licence: str
    source: str
    sha256: str
    has_spans: bool = False

    @property
    def file_name(self) -> str:
        """Name of the file with the held-out pairs."""
        return f"{self.name}.test.jsonl.gz"


class SetFile(NamedTuple):
    """A file to run: its name in results, its digest and what is known about it.

    ``state``: ``published`` (a known set, digest as expected), ``modified`` (another digest) or ``own`` (not known).
    """

    name: str
    path: Path
    sha256: str
    licence: str
    state: str


_NONCOMMERCIAL = "CC BY-NC 4.0"
KNOWN_SETS = (
    KnownSet(
        "jfleg",
        "CC BY-NC-SA 4.0",
        "github.com/keisks/jfleg",
        "516264884092d3901f818c69b1a28f1921fcd9f4bf2ec355fdc58418295af678",
        True,
    ),
    KnownSet(
        "mlqe_postedit",
        "CC0 1.0",
        "github.com/sheffieldnlp/mlqe-pe",
        "4559dbc2d678466736f2229632ff0fc027b35d055bd18d5b48808bc4bc965d53",
        True,
    ),
    KnownSet(
        "defacto",
        "MIT",
        "github.com/microsoft/DeFacto",
        "c76f0f07c4790222cc8c0031c712e99d74bcf318898809bdcd2ddecc9998cd40",
        True,
    ),
    KnownSet(
        "fine_grained_qa",
        "Apache-2.0, CC BY-SA",
        "github.com/allenai/FineGrainedRLHF",
        "16e4c853c2d0d118849a7ec873165d9cb437d1af57d9203adcf74832c13fc1db",
        True,
    ),
    KnownSet(
        "wmt_mqm_zhen",
        "Apache-2.0",
        "github.com/google/wmt-mqm-human-evaluation",
        "fbfcea73d5b37d4586ec7346c51b22a63deba11d35159abe65c55f3ddc54c4da",
        True,
    ),
    KnownSet(
        "paradetox",
        "CC0 1.0",
        "github.com/s-nlp/paradetox",
        "b5cae9e9679f189b03e00f248ab3280cc8f8dd302580561cb15407b33859cea2",
        True,
    ),
    KnownSet(
        "hh_helpful",
        f"MIT, {_NONCOMMERCIAL}",
        "github.com/Linear95/DSP",
        "ee8bc0382b7dc216b3d28eeead9a4fb753c455d02d08a30e308a5d3e28ab98a1",
    ),
    KnownSet(
        "hh_harmless",
        "MIT",
        "github.com/anthropics/hh-rlhf",
        "bac6c5d1f448d35c126c73e9d7c52cdbe5b749cdd2ddf040924003b24d2473be",
    ),
    KnownSet(
        "llmbar",
        "MIT",
        "github.com/princeton-nlp/LLMBar",
        "cecb13b5b0aec0bef73ee1c8df7a1175af56ccdebdcb0f7b8d66f3e1e3dedbb6",
    ),
    KnownSet(
        "hhh_alignment",
        "Apache-2.0",
        "github.com/prometheus-eval/prometheus-eval",
        "161b773f709c1a38caab9d5cedb9760164fee2cc2352e8d8c672a928b160841c",
    ),
    KnownSet(
        "pandalm_test",
        "Apache-2.0",
        "github.com/WeOpenML/PandaLM",
        "eed89f56b04112fb7d85bc540f4aad805be9ac8c8f83516d032de15cd5e530b4",
    ),
    KnownSet(
        "tulu_bon",
        f"Apache-2.0, {_NONCOMMERCIAL}",
        "github.com/allenai/reward-bench",
        "5aa5d308991bfb1a7b7dfef881bd74e058f3e2578b642614bf9c2570b41eb4a9",
    ),
    KnownSet(
        "alpaca_eval_cross",
        _NONCOMMERCIAL,
        "github.com/tatsu-lab/alpaca_eval",
        "c7fd1e08494c6e33628d6340b4c629bdc3774166ca4872ac961a6b4c52cd52c1",
    ),
)


def known_files(folder: Path, *, needs_spans: bool, names: tuple[str, ...] = ()) -> list[SetFile]:
    """The files of known sets in ``folder``; only those with spans, or with given names, if asked for.

    Raises:
        KeyError: ``names`` has a name that is not known, or whose file is missing; the text says which are there.
        OSError: a file cannot be read.
    """
    sets = {known.name: known for known in KNOWN_SETS if known.has_spans or not needs_spans}
    there = {name: folder / known.file_name for name, known in sets.items() if (folder / known.file_name).is_file()}
    for name in names:
        if name not in there:
            listing = ", ".join(there) or "none"
            raise KeyError(f"no set {name!r} in {folder}; sets of this benchmark that are there: {listing}")
    return [set_file(path) for name, path in there.items() if not names or name in names]


def set_file(path: Path) -> SetFile:
    """A file of a known set (by its file name) or of the caller's own. Raises OSError."""
    digest = file_digest(path)
    for known in KNOWN_SETS:
        if path.name == known.file_name:
            state = "published" if digest == known.sha256 else "modified"
            return SetFile(known.name, path, digest, known.licence, state)
    return SetFile(path.name.split(".json")[0], path, digest, "not stated", "own")
