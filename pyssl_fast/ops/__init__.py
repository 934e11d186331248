"""The operators: `torch.ops.pyssl_fast.*`, one block per operator with its schema, fake and gradient."""

from pyssl_fast.ops import covariance as covariance
from pyssl_fast.ops import multi_tensor as multi_tensor
from pyssl_fast.ops import similarity as similarity
