"""The embedded backbone's size: Qwen2-VL's own classes, small."""

from transformers import Qwen2VLConfig

VOCABULARY = 768
DIM = 256


def backbone_config() -> Qwen2VLConfig:
    """Vision: depth 5, width 160, patch 14, merge 2. Language model: 4 layers, d = 256, 4 heads, 2 key/value heads."""
    return Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": DIM,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 5,
            "embed_dim": 160,
            "num_heads": 5,
            "mlp_ratio": 4,
            "hidden_size": DIM,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
        vision_start_token_id=3,
        vision_end_token_id=4,
        vision_token_id=5,
        image_token_id=6,
        video_token_id=7,
    )
