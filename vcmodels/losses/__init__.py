"""Losses: functions (logits, label, valid, *, weight, ...) -> scalar, by name in `LOSSES`."""

from vcmodels.losses.registry import LOSSES, Loss, LossBlock, LossTerm, parse_loss

__all__ = ["LOSSES", "Loss", "LossBlock", "LossTerm", "parse_loss"]
