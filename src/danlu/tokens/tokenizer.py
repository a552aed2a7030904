"""The tokenizer: text to ids and back, losslessly, with special tokens that no text can forge.

In:  a folder in the Hugging Face layout (ours or anybody's byte-level BPE), or a backend trained by ``bpe``.
Out: ``Tokenizer``: encode, decode, the ids with a role (bos, eos, pad), and the folder that transformers loads.
Left out: training (``bpe``), the chat template and everything about turns (``chat``), vocabularies that are not
byte-level (SentencePiece, WordPiece): their decode is not lossless.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tokenizers

from danlu.errors import UserError
from danlu.files import atomic_write, hash_value, read_json, write_json
from danlu.records import Document

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_BATCH_CHARS = 400_000


class Tokenizer:
    """A byte-level BPE vocabulary in which special tokens come from ids only, never from text.

    Attributes:
        spec: the text of its ``tokenizer.json``.
        vocab_size: ids go from 0 to ``vocab_size - 1``; a multiple of 64 for vocabularies trained here.
        bos: begins a document.
        eos: ends a document and an assistant's turn.
        pad: fills rows, never equal to ``eos`` (a model that is trained to ignore padding must still learn to stop).
        specials: special token -> id.
        config: the content of ``tokenizer_config.json``.
    """

    def __init__(self, backend: str, config: Mapping[str, Any]) -> None:
        """Make a tokenizer of the text of a ``tokenizer.json`` and the content of a ``tokenizer_config.json``.

        Raises:
            UserError: the vocabulary is not byte-level, text can produce a special token, or no token ends a text.
        """
        self.spec = backend
        self.config = dict(config)
        self._backend = tokenizers.Tokenizer.from_str(backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # "<|end|>" in a text is seven characters, not a command
        parts = json.loads(backend)
        if "ByteLevel" not in json.dumps(parts["decoder"]):
            raise UserError("this tokenizer is not byte-level BPE, so its text does not survive a round trip; use one")
        self._added = {row["content"] for row in parts["added_tokens"]}
        self.specials: dict[str, int] = {row["content"]: row["id"] for row in parts["added_tokens"] if row["special"]}
        self._vocab: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocab.values()) + 1
        self._find_roles()
        self._refuse_forgery()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder in the Hugging Face layout.

        ``eos`` falls back to ``generation_config.json``; a template may stand in ``chat_template.jinja``.

        Raises:
            UserError: there is no tokenizer, or not one that can be used.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"no tokenizer.json in {folder}; a model directory in the Hugging Face layout has one")
        config = _read_if_there(folder / "tokenizer_config.json")
        if (folder / "chat_template.jinja").is_file():
            config["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        try:
            backend = path.read_text(encoding="utf-8")
            if not config.get("eos_token"):
                config["eos_token"] = _generation_eos(folder, backend)
            return cls(backend, config)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        except Exception as error:  # the library raises bare Exception for a fault of the file
            raise UserError(f"{path} is not a tokenizer that can be read ({error})") from None

    def extended(self, specials: Sequence[str], config: Mapping[str, Any]) -> Tokenizer:
        """A tokenizer that knows these special tokens too, their ids after all others.

        Args:
            specials: what is there already keeps its id.
            config: keys of ``tokenizer_config.json`` that take the place of this one's.
        """
        backend = tokenizers.Tokenizer.from_str(self.spec)
        backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in specials])
        return Tokenizer(backend.to_str(), {**self.config, **config})

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json`` into ``folder``."""
        with atomic_write(folder / "tokenizer.json") as handle:
            handle.write(self.spec)
        write_json(folder / "tokenizer_config.json", self.config)
        roles = {role: _content(self.config[role]) for role in _ROLES if self.config.get(role)}
        write_json(folder / "special_tokens_map.json", roles)

    @functools.cached_property
    def hash(self) -> str:
        """Identity of the vocabulary, its splitting rule and its roles; token shards are bound to it."""
        return hash_value([self.spec, self.bos, self.eos, self.pad])

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added before or after, never a special token."""
        return list(self._backend.encode(_whole(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        encodings = self._backend.encode_batch_fast(list(map(_whole, texts)), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_documents(self, documents: Iterable[Document]) -> Iterator[tuple[list[Document], list[list[int]]]]:
        """Documents and their ids, some hundred thousand characters at a time: work for all cores, little in memory."""
        batch: list[Document] = []
        chars = 0
        for document in documents:
            batch.append(document)
            chars += len(document.text)
            if chars >= _BATCH_CHARS:
                yield batch, self.encode_batch([d.text for d in batch])
                batch, chars = [], 0
        if batch:
            yield batch, self.encode_batch([d.text for d in batch])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are skipped and bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self._bytes.__getitem__, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id adds to a text: none for a special token."""
        return self._bytes[id]

    @functools.cached_property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes that each id adds to a text, (vocab_size,): what bits per byte divide by."""
        return np.array([len(piece) for piece in self._bytes], dtype=np.int64)

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        pieces = [b""] * self.vocab_size
        for token, id in self._vocab.items():
            if token not in self.specials:
                pieces[id] = token.encode() if token in self._added else _spelt_bytes(token)
        return pieces

    def _find_roles(self) -> None:
        eos = self._role("eos_token")
        if eos is None:
            raise UserError("no eos_token in tokenizer_config.json or generation_config.json; name the one that ends")
        bos, pad = self._role("bos_token"), self._role("pad_token")
        self.eos = eos
        self.bos = eos if bos is None else bos
        self.pad = self._spare() if pad in (None, eos) else pad

    def _role(self, name: str) -> int | None:
        token = self.config.get(name)
        if not token:
            return None
        id = self._vocab.get(_content(token))
        if id is None:
            raise UserError(f"{name} '{_content(token)}' of tokenizer_config.json is not in tokenizer.json")
        return id

    def _spare(self) -> int:
        """Something to pad with where the folder names nothing: a special without a role, or the rarest token."""
        roles = {self.eos, self.bos}
        free = [id for id in self.specials.values() if id not in roles]
        return min(free) if free else max(id for id in self._vocab.values() if id not in roles)

    def _refuse_forgery(self) -> None:
        for token, id in self.specials.items():
            if id in self.encode(token):
                raise UserError(f"the text '{token}' encodes to the special token of that name; a page could forge it")


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: visible Latin-1 for itself, the other 68 from U+0100 upwards."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


def _spelt_bytes(token: str) -> bytes:
    """The bytes behind a token's spelling; like every reader of the format, a foreign character stands for itself."""
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def _whole(text: str) -> str:
    r"""Text without halves of surrogate pairs, which are no text but come in through JSON's ``\ud800``: U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_if_there(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _content(token: Any) -> str:
    """A token's spelling; older folders write it as an object."""
    return str(token["content"] if isinstance(token, Mapping) else token)


def _generation_eos(folder: Path, backend: str) -> str | None:
    """The spelling of the first ``eos_token_id`` of ``generation_config.json``, if there is one."""
    eos = _read_if_there(folder / "generation_config.json").get("eos_token_id")
    first = eos[0] if isinstance(eos, list) and eos else eos
    return tokenizers.Tokenizer.from_str(backend).id_to_token(first) if isinstance(first, int) else None
