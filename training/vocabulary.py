"""Character vocabulary of the pocket checkpoint. Ids never move: a later checkpoint may only append."""

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

BOS, EOS, PAD, IMAGE = 0, 1, 2, 3
UNKNOWN = "<|unknown|>"
ASCII = "".join(chr(code) for code in range(0x20, 0x7F)) + "\n"
LATIN_1 = "".join(chr(code) for code in range(0xA1, 0x100) if code != 0xAD)
TYPOGRAPHIC = "–—‘’‚“”„†‡•…‰‹›€™−≤≥≠≈→↑↓"  # noqa: RUF001 - the look-alikes are the point
GROUNDED_PROMPT = "\n<|grounding|>Convert the document to markdown."
PLAIN_PROMPT = "\nFree OCR."
CHARACTERS = ASCII[:-1] + LATIN_1 + TYPOGRAPHIC
"""Characters that a page may print, and the space."""
_CONTROL = ["<|begin|>", "<|end|>", "<|pad|>", "<image>"]
# Each of the two prompts is one token: spelled out, it would cost every page some forty positions.
_SPECIAL = [
    "<|grounding|>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<td>",
    "</td>",
    "Convert the document to markdown.",
    "Free OCR.",
    UNKNOWN,
]


def tokens() -> list[str]:
    """Return every token, in the order of its id."""
    return [*_CONTROL, *ASCII, *_SPECIAL, *LATIN_1, *TYPOGRAPHIC]


ID_OF = {token: index for index, token in enumerate(tokens())}


def build_tokenizer() -> Tokenizer:
    """Build the tokenizer: one token a character; special tokens are recognised, other characters unknown."""
    tokenizer = Tokenizer(WordLevel(ID_OF, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = Fuse()
    special = [AddedToken(token, special=True, normalized=False) for token in [*_CONTROL, *_SPECIAL]]
    tokenizer.add_special_tokens(special)
    return tokenizer
