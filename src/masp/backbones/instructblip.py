"""The family InstructBLIP over Vicuna: a Q-Former looks at the image with the question in mind.

Its visual tokens depend on the question, so the vision tower's features are what an image is kept as, and `ask` puts a
question to them. There is no chat template: the processor writes the visual tokens, then "<s>" and the bare question.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from transformers import AutoTokenizer, InstructBlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from masp.backbones.chat import ANSWER_HERE, QUESTION_HERE, Turn, visual_tokens_alone
from masp.backbones.checkpoint import load_image_processor, load_model, load_tokenizer
from masp.backbones.device_map import Placement
from masp.backbones.files import BackboneFiles, section
from masp.backbones.hf_backbone import FamilyParts, HFBackbone
from masp.backbones.packing import packed, square_pixels
from masp.core.errors import BackboneError
from masp.core.types import Pixels, VisualTokens


def load(files: BackboneFiles, placement: Placement) -> HFBackbone:
    """The backbone of a folder."""
    model = load_model(files, InstructBlipForConditionalGeneration, placement)
    tokenizer = load_tokenizer(files, chat=False)
    visual = tokenizer.convert_ids_to_tokens(model.config.image_token_id)

    def render(answered: bool) -> str:
        return f"{visual}{QUESTION_HERE}" + f" {ANSWER_HERE}" * answered

    asker = AutoTokenizer.from_pretrained(files.folder / "qformer_tokenizer", local_files_only=True)
    vision = AskedVision(model, load_image_processor(files, BlipImageProcessorPil), asker)
    parts = FamilyParts(
        model=model,
        language=model.language_model.model,
        head=model.language_model.lm_head,
        tokenizer=tokenizer,
        turn=Turn(image=visual, visual=visual, slot=visual_tokens_alone, frame=(), render=render, image_first=True),
        vision=vision,
        ask=vision.ask,
    )
    return HFBackbone(files, parts)


def refuse(name: str, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint by its config.json.

    Raises:
        BackboneError: an encoder-decoder as language model, or no image token.
    """
    if section(content, "text_config").get("model_type") == "t5":
        raise BackboneError(
            f"{name} is InstructBLIP with Flan-T5; an encoder-decoder has no prefix for a prompt to follow",
            "an InstructBLIP checkpoint with a decoder, such as Salesforce/instructblip-vicuna-7b",
        )
    if content.get("image_token_id", content.get("image_token_index")) is None:
        raise BackboneError(
            f"the configuration of {name} names no image token: it is older than its processor",
            "image_token_index in config.json, and the token in the tokenizer",
            "Fetch the newest revision of the checkpoint.",
        )


def visual_count(config: Any, settings: Mapping[str, Any], width: int, height: int) -> int:
    """Visual tokens of an image once it was asked: one for each query of the Q-Former."""
    return config.num_query_tokens


class AskedVision:
    """The vision tower once per image, the Q-Former once per image and question.

    Args:
        model: transformers' model.
        processor: the image processor.
        asker: the tokenizer of the Q-Former.
    """

    def __init__(self, model: Any, processor: Any, asker: Any) -> None:
        self._model, self._processor, self._asker = model, processor, asker
        self._lock = threading.Lock()  # a tokenizer sets its padding and truncation in the call that asks for them
        self.image_transform: dict[str, Any] = {"rule": "instructblip", "size": dict(processor.size)}

    def preprocess(self, images: Sequence[Image]) -> Pixels:
        """One square of pixels per image, stretched to fit."""
        return square_pixels(self._processor, images)

    def visual_tokens(self, pixels: Pixels) -> VisualTokens:
        """The tower's features, which are not in language-model space yet."""
        return packed(list(self._model.vision_model(pixels.values.to(self._model.vision_model.dtype))[0]))

    def ask(self, visual: VisualTokens, questions: Sequence[str]) -> VisualTokens:
        """What the Q-Former reads from the features with each question, in language-model space."""
        device = visual.tokens.device
        with self._lock:
            text = self._asker(list(questions), padding=True, truncation=True, return_tensors="pt").to(device)
        queries = self._model.query_tokens.expand(len(visual), -1, -1)
        seeing = text.attention_mask.new_ones(queries.shape[:2])
        states = self._model.qformer(
            input_ids=text.input_ids,
            attention_mask=torch.cat([seeing, text.attention_mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=visual.tokens,
            encoder_attention_mask=visual.mask.long(),
        )[0]
        return packed(list(self._model.language_projection(states[:, : queries.shape[1]])))
