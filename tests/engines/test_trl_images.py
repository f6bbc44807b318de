"""Pictures in prompts: what is read of a rollout is what one unpadded sequence with its own picture gives."""

from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset
from own_tokens_oracle import POOL, Kept, assert_read_as_the_oracle_does
from PIL import Image
from recording import HOST_CHATTER
from test_trl_agents import chat_tokenizer, lengths
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLProcessor,
)

pytestmark = HOST_CHATTER

TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
SIDE = 32
QWEN_MARKS = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
GEMMA_MARKS = {"boi_token": "<begin>", "image_token": "<soft>", "eoi_token": "<end>"}


class PictureProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without films, which need torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def qwen() -> tuple[Any, Any]:
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_MARKS})
    start, image, end, video = tokenizer.convert_tokens_to_ids(QWEN_MARKS)
    pictures = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": SIDE * SIDE}
    )
    template = TEMPLATE.replace("MARK", "".join(QWEN_MARKS[:3]))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=TEXT | {"rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return config, PictureProcessor(pictures, tokenizer, template)


def gemma() -> tuple[Any, Any]:
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(GEMMA_MARKS.values())})
    for name, mark in GEMMA_MARKS.items():
        setattr(tokenizer, name, mark)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(mark))
    pictures = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_pan_and_scan=False)
    config = Gemma3Config(
        text_config=TEXT | {"sliding_window": 64, "query_pre_attn_scalar": 16},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    template = TEMPLATE.replace("MARK", GEMMA_MARKS["boi_token"])
    return config, Gemma3Processor(pictures, tokenizer, template, image_seq_length=4)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=numpy.uint8))


def asked(place: int) -> str:
    return "what is it" + "?" * (place % 3)


class WithPictures(Kept):
    def alone(self, row: int, ids: list[int]) -> dict[str, torch.Tensor]:
        """The unpadded prompt with its own picture, by the processor alone, and the completion."""
        place = row // self.num_generations
        content = [{"type": "image", "image": picture(place)}, {"type": "text", "text": asked(place)}]
        inputs = self.processing_class.apply_chat_template(
            [[{"role": "user", "content": content}]], tokenize=True, return_dict=True, return_tensors="pt"
        )
        rest = torch.tensor([ids])
        for name, filler in (("input_ids", rest), ("attention_mask", torch.ones_like(rest))):
            inputs[name] = torch.cat([inputs[name], filler], dim=1)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.zeros_like(rest)], dim=1)
        return dict(inputs)


@pytest.fixture
def with_pictures(build, monkeypatch):
    monkeypatch.setattr("conftest.RecordedTrainer", WithPictures)

    def trainer(kind: Any, **options: Any) -> WithPictures:
        config, processor = kind()
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        rows = [{"prompt": [{"role": "user", "content": asked(n)}], "image": picture(n)} for n in range(8)]
        settings = {"max_steps": 1, "pool_tokens": POOL, "layers": [2], "per_device_train_batch_size": 4}
        settings |= {"data": Dataset.from_list(rows), "shuffle_dataset": False, "end_of_thinking": "</think>"}
        return build(model=model, reward=lengths, named={"processing_class": processor}, **(settings | options))

    return trainer


@pytest.mark.parametrize("steps_per_generation", [2, 1], ids=["free", "extra pass"])
@pytest.mark.parametrize("kind", [qwen, gemma])
def test_a_rollout_is_read_with_its_own_picture(with_pictures, kind, steps_per_generation):
    trainer = with_pictures(kind, steps_per_generation=steps_per_generation)
    trainer.train()
    assert_read_as_the_oracle_does(trainer)
    prompts = trainer.baseline.given[0]["prompts"]
    assert prompts[::2] == prompts[1::2]
    assert len(set(prompts)) == len(prompts) // 2
