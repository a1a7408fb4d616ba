"""Pretrained encoders of other libraries, frozen, behind one small protocol."""

from clip_core.model.encoders.base import EncoderInfo, FrozenEncoder
from clip_core.model.encoders.resolve import load_encoder, load_image_encoder, load_text_encoder, resolve_encoder

__all__ = ["EncoderInfo", "FrozenEncoder", "load_encoder", "load_image_encoder", "load_text_encoder", "resolve_encoder"]
