"""A lowercase byte-pair tokenizer of 6,144 entries for the six languages of the project.

Lowercasing and compatibility normalisation make a heading, a sentence start and a query the same
tokens, which a model this small cannot learn to equate for every word. Each word carries its own
leading space, so the tokens of a phrase are the tokens of its words in a row.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from studies.embedded.tiny_config import PAD, SPECIAL_TOKENS


def train(lines: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer; ids 0..6 are `SPECIAL_TOKENS`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((clean(line) for line in lines), trainer)
    return tokenizer


def clean(text: str) -> str:
    """Return text without unpaired surrogates, which no tokenizer accepts."""
    return "".join(char for char in text if not 0xD800 <= ord(char) < 0xE000)


def published(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap for transformers, padded on the left."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD],
        eos_token=SPECIAL_TOKENS[PAD],
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
