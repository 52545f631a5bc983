"""What training prints: signs that words seldom have, beside everything that was there before."""

import random
import string
from collections import Counter
from pathlib import Path

import pytest
from training_pages import word_list

from benchmarks.signs import SIGNS
from training.settings import load_settings
from training.text import TextSource
from training.vocabulary import CHARACTERS

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def signs(tmp_path: Path) -> TextSource:
    return TextSource(word_list(tmp_path), signs=1.0)


def characters_of(text: TextSource, seed: int = 0, paragraphs: int = 400) -> Counter[str]:
    rng = random.Random(seed)
    return Counter("".join(word for _ in range(paragraphs) for word in text.paragraph(rng, 30)))


def test_nothing_is_printed_that_the_vocabulary_cannot_say(tmp_path: Path) -> None:
    mixed = TextSource(word_list(tmp_path), common=0.3, ledger=0.2, technical=0.2, signs=0.4)
    assert not set(characters_of(mixed)) - set(CHARACTERS)


def test_every_sign_is_printed_often(signs: TextSource) -> None:
    printed = characters_of(signs)
    rare = {sign: printed[sign] for sign in SIGNS if printed[sign] * 4_000 < printed.total()}
    assert not rare


def test_no_digit_is_rarer_than_another(signs: TextSource) -> None:
    printed = characters_of(signs)
    digits = [printed[digit] for digit in string.digits]
    assert sum(digits) > 0.3 * printed.total()
    assert max(digits) < 1.25 * min(digits)


def test_ampersands_and_section_signs_stand_alone_and_inside_words(signs: TextSource) -> None:
    rng = random.Random(1)
    words = [word for _ in range(400) for word in signs.paragraph(rng, 30)]
    for sign in "&§":
        alone = words.count(sign)
        within = sum(sign in word and word != sign for word in words)
        assert alone > 20
        assert within > 20


def test_the_same_generator_gives_the_same_text(signs: TextSource) -> None:
    one, other = (signs.paragraph(random.Random(3), 40) for _ in range(2))
    assert one == other
    assert 0 < len(one) <= 40


def test_at_least_half_of_what_is_trained_on_is_what_was_before() -> None:
    assert 0 < load_settings(REPOSITORY / "training/pocket.toml").render.signs <= 0.5
