"""Tiny random text encoders of diffusion pipelines and their tokenizers: the real classes, one layer, no network."""

SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tiny_clip_tokenizer(text_length: int):
    """A character-level CLIP tokenizer."""
    from transformers import CLIPTokenizer

    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet), *SPECIAL]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=text_length)


def tiny_clip(width: int, text_length: int = 77, projection: int | None = None, layers: int = 1):
    """A CLIP tokenizer and text encoder; with a projection of that width, where one is given."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_clip_tokenizer(text_length)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=projection or width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=text_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def tiny_t5(width: int, text_length: int, multilingual: bool = False):
    """A character-level T5 tokenizer and the encoder of a T5 (of a UMT5)."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

    letters = [chr(code) for code in range(33, 127)]
    vocab = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", "\u2581")] + [(letter, -1.0) for letter in letters]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=text_length)
    config_class, model_class = (UMT5Config, UMT5EncoderModel) if multilingual else (T5Config, T5EncoderModel)
    config = config_class(vocab_size=len(vocab), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return tokenizer, model_class(config)


def tiny_clap_text(width: int):
    """A byte-level tokenizer and the text half of a CLAP."""
    from transformers import ClapTextConfig, ClapTextModelWithProjection

    tokenizer = tiny_roberta_tokenizer()
    config = ClapTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=width,
        max_position_embeddings=tokenizer.model_max_length + 2,
    )
    return tokenizer, ClapTextModelWithProjection(config)


def tiny_roberta_tokenizer(text_length: int = 77):
    """A byte-level RoBERTa tokenizer."""
    from transformers import RobertaTokenizer

    vocab = {token: index for index, token in enumerate([*ROBERTA_SPECIAL, *_byte_alphabet()])}
    return RobertaTokenizer(vocab=vocab, merges=[], model_max_length=text_length)


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
