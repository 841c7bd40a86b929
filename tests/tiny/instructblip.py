"""Tiny InstructBLIP over Llama."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from masp.core.types import Pixels
from tiny.kind import Kind, text_config
from tiny.tokens import WORDS, sentence_piece

SIDE, QUERIES = 12, 5


def _asker(folder: Path) -> None:
    """The Q-Former's tokenizer: words and letters."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz.,?:'"))
    words = sorted({word.strip(".,?:").lower() for word in WORDS.split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters), *words]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder / "qformer_tokenizer")


def _model(tokenizer: Any) -> Any:
    sizes = {"intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InstructBlipConfig(
        text_config=LlamaConfig(**text_config()).to_dict(),
        vision_config=sizes | {"hidden_size": 22, "image_size": SIDE, "patch_size": 4},
        qformer_config=sizes | {"hidden_size": 26, "vocab_size": 211, "encoder_hidden_size": 22},
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return InstructBlipForConditionalGeneration(config)


def _asked(model: Any, questions: list[str]) -> dict[str, Tensor]:
    batch = AutoTokenizer.from_pretrained(Path(model.name_or_path) / "qformer_tokenizer")(
        questions, padding=True, return_tensors="pt"
    )
    return {"qformer_input_ids": batch.input_ids, "qformer_attention_mask": batch.attention_mask}


def _inputs(model: Any, pixels: Pixels, ids: Tensor, questions: list[str]) -> dict[str, Any]:
    return {"pixel_values": pixels.values, **_asked(model, questions)}


def _features(model: Any, pixels: Pixels, questions: list[str]) -> list[Tensor]:
    return list(model.get_image_features(pixels.values, **_asked(model, questions)).pooler_output)


def _official(folder: Path) -> Any:
    made = InstructBlipProcessor(
        BlipImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder / "qformer_tokenizer"),
        num_query_tokens=QUERIES,
    )

    def process(image: Any, text: str) -> Any:
        question = text.removeprefix("<image>")  # its prompt is the bare question
        return made(images=image, text=question, return_tensors="pt")

    return process


INSTRUCTBLIP = Kind(
    tokenizer=lambda: sentence_piece(["<image>"], None, legacy=True),
    model=_model,
    processor={"image_processor_type": "BlipImageProcessor", "size": {"height": SIDE, "width": SIDE}},
    inputs=_inputs,
    features=_features,
    counts=[QUERIES] * 3,
    official=_official,
    extra=_asker,
)
