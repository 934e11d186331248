"""Teachers: copies of a model that follow it slowly, by an exponential moving average (EMA) of its weights."""

from pyssl_fast.ema.model import ModelEMA
from pyssl_fast.ema.schedules import cosine_momentum
from pyssl_fast.ema.timm import ModelEmaV3
from pyssl_fast.ema.update import (
    activate_requires_grad,
    deactivate_requires_grad,
    ema_update_,
    get_ema_multi_avg_fn,
    update_momentum,
)

__all__ = [
    "ModelEMA",
    "ModelEmaV3",
    "activate_requires_grad",
    "cosine_momentum",
    "deactivate_requires_grad",
    "ema_update_",
    "get_ema_multi_avg_fn",
    "update_momentum",
]
