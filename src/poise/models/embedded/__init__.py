"""The policy that lives in the package: how it is built and loaded.

The folder of this file is a plain `transformers` checkpoint (Qwen3 architecture, float16 on disk, float32 in memory)
that `from_pretrained` and every `--model PATH` option read. The end-of-thinking mark is one token, and an ordinary one:
decoding that leaves out special tokens keeps it, as in the tokenizers of the Qwen3 family.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from poise.tasks.embedded import END_OF_THINKING, FAMILIES, THINK

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = sorted(set("0123456789+*:,r()[]{} abcdefghRHTSC").union(*FAMILIES))


def embedded_model_path() -> Path:
    """The folder of the packaged checkpoint."""
    return Path(__file__).parent


def load_embedded_model() -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The packaged policy in float32, in evaluation mode, and its tokenizer."""
    path = embedded_model_path()
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, one for each of the two thinking marks; padding on the left, as generation needs."""
    vocabulary = {token: index for index, token in enumerate([PAD, END, UNKNOWN, THINK, END_OF_THINKING, *CHARACTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, END, UNKNOWN])
    tokenizer.add_tokens([AddedToken(THINK, normalized=False), AddedToken(END_OF_THINKING, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def untrained_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A freshly initialised policy for a tokenizer; seed torch before."""
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = None
    return model
