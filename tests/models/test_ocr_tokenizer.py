"""Text and ids: prompts, decoding of arbitrary ids, and pieces that add up."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ocr_checkpoints import IMAGE_ID, SPECIAL_TOKENS, byte_level_tokenizer, character_tokenizer
from tokenizers import Tokenizer

from app.errors import BadOption
from app.ocr.models.checkpoint import CheckpointError
from app.ocr.models.deepseek import as_trained
from app.ocr.models.tokenizer import OcrTokenizer, read_tokenizer

HIDDEN = frozenset({0, 1, 2})
LIBRARY = {True: byte_level_tokenizer(), False: character_tokenizer()}
OURS = {
    byte_level: OcrTokenizer(library, hidden_ids=HIDDEN, image_id=IMAGE_ID, byte_level=byte_level)
    for byte_level, library in LIBRARY.items()
}
kinds = pytest.mark.parametrize("byte_level", [True, False], ids=["bytes", "characters"])
any_ids = st.lists(st.one_of(st.integers(0, 340), st.integers(-5, 10**9)), max_size=40)


def known(library: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [i for i in ids if i not in HIDDEN and i >= 0 and library.id_to_token(i) is not None]


@kinds
@given(any_ids)
def test_decoding_is_the_librarys_for_ids_it_knows(byte_level: bool, ids: list[int]) -> None:
    library = LIBRARY[byte_level]
    visible = known(library, ids)
    expected = library.decode(visible, skip_special_tokens=False)
    assert OURS[byte_level].decode(visible) == expected
    assert OURS[byte_level].decode([i for v in visible for i in (0, v, 2)]) == expected, "bos, pad: nothing"


@kinds
def test_ids_without_a_token_decode_to_the_replacement_character(byte_level: bool) -> None:
    for token_id in (339, 10**9, -1):
        assert OURS[byte_level].decode([token_id]) == "\N{REPLACEMENT CHARACTER}"


@kinds
def test_special_tokens_are_recognised_and_kept(byte_level: bool) -> None:
    tokenizer = OURS[byte_level]
    ids = tokenizer.prompt_ids("\n<|grounding|>read.")
    assert SPECIAL_TOKENS.index("<|grounding|>") in ids
    assert 0 not in ids, "no bos"
    assert tokenizer.decode(ids) == "\n<|grounding|>read."
    last = len(SPECIAL_TOKENS) - 1  # of characters outside of the byte alphabet
    assert tokenizer.decode([last]) == SPECIAL_TOKENS[last]


@kinds
@pytest.mark.parametrize("prompt", ["<image>", "a <image>\nb"])
def test_the_image_token_is_refused_by_name(byte_level: bool, prompt: str) -> None:
    with pytest.raises(BadOption, match="<image>"):
        OURS[byte_level].prompt_ids(prompt)


def test_an_image_token_of_another_spelling_is_refused_too() -> None:
    tokenizer = OcrTokenizer(LIBRARY[True], hidden_ids=HIDDEN, image_id=5, byte_level=True)
    with pytest.raises(BadOption, match="image token"):
        tokenizer.prompt_ids(f"x{SPECIAL_TOKENS[5]}y")


def test_characters_outside_of_a_closed_vocabulary_are_refused() -> None:
    with pytest.raises(BadOption, match="vocabulary"):
        OURS[False].prompt_ids("ABC")


@kinds
def test_a_lone_surrogate_is_refused(byte_level: bool) -> None:
    with pytest.raises(BadOption):
        OURS[byte_level].prompt_ids("read \ud800")


def read(folder: Path, tokenizer: Tokenizer, pad_id: int | None = None) -> OcrTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return read_tokenizer(folder, bos_id=0, eos_id=1, pad_id=pad_id, image_id=IMAGE_ID)


def test_characters_are_joined_without_spaces_with_or_without_a_decoder(tmp_path: Path) -> None:
    for fuse in (True, False):
        tokenizer = read(tmp_path, character_tokenizer(fuse=fuse))
        assert tokenizer.decode(tokenizer.prompt_ids("a b")) == "a b"


@pytest.mark.parametrize("pad_token", ["<pad>", {"content": "<pad>"}])
def test_pad_is_hidden_when_the_tokenizer_config_names_it(tmp_path: Path, pad_token: object) -> None:
    assert read(tmp_path, byte_level_tokenizer()).decode([2]) == "<pad>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad_token}))
    assert read(tmp_path, byte_level_tokenizer()).decode([2]) == ""


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    library = byte_level_tokenizer()
    library.enable_truncation(2)
    library.enable_padding(length=9)
    tokenizer = read(tmp_path, library)
    assert tokenizer.decode(tokenizer.prompt_ids("a longer prompt")) == "a longer prompt"


@pytest.mark.parametrize("decoder", ["Metaspace", 5, {"type": "Sequence", "decoders": []}])
def test_other_decoders_are_refused(tmp_path: Path, decoder: object) -> None:
    content = json.loads(byte_level_tokenizer().to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"decoder": decoder}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path, bos_id=0, eos_id=1, pad_id=None, image_id=IMAGE_ID)


@pytest.mark.parametrize(
    "written",
    [
        "Free OCR.",
        "\nFree OCR.",
        "<image>\nFree OCR.",
        "<image>\nFree OCR. ",
        " <image>Free OCR.\n",
        "<image> \n Free OCR.",
    ],
)
def test_prompts_as_people_write_them_are_those_that_were_trained(written: str) -> None:
    assert as_trained(written, "\n<|grounding|>Convert the document to markdown.") == "\nFree OCR."
    assert as_trained(written, "document parsing.") == "Free OCR."


def test_an_image_elsewhere_stays_where_it_is_and_is_refused() -> None:
    assert "<image>" in as_trained("Read <image> twice", "\nread")
    assert "<image>" in as_trained("<image><image>", "\nread")
