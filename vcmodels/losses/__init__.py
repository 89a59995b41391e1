"""Losses: functions (logits, label, valid, *, weight, ...) -> scalar, by name in `LOSSES`."""

from vcmodels.losses.registry import LOSSES, MASK_LOSSES, LossBlock, LossTerm, parse_loss

__all__ = ["LOSSES", "MASK_LOSSES", "LossBlock", "LossTerm", "parse_loss"]
