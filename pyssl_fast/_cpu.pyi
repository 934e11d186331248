from collections.abc import Sequence
from typing import Any

# A matrix is (data, dtype, rows, columns, stride of a row in elements); a pointer that is 0 is none.
_Matrix = tuple[int, int, int, int, int]

FLOAT32: int
FLOAT16: int
BFLOAT16: int
PRECISION_FLOAT32: int
PRECISION_BFLOAT16X3: int
PRECISION_BFLOAT16: int
COMPILER: str
HAS_OPENMP: bool

def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def has_bfloat16() -> bool: ...

class Pairs:
    def __init__(
        self,
        q: _Matrix,
        k: _Matrix,
        scale: float,
        row_ids: int,
        column_ids: int,
        row_limit: int,
        column_limit: int,
        terms: list[int],
        powers: list[float],
        views: int,
        normalize: bool,
        precision: int,
        threads: int,
    ) -> None: ...

def contrast(pairs: Pairs, lse: int, positive: int, statistics: int) -> None: ...
def contrast_backward(
    pairs: Pairs, grad_lse: int, grad_positive: int, lse: int, grad_q: _Matrix, grad_k: _Matrix
) -> float: ...
def bank_contrast(pairs: Pairs, lse: int, mean_key: int, statistics: int) -> None: ...
def sigmoid_contrast(
    q: _Matrix,
    k: _Matrix,
    scale: float,
    bias: float,
    row_ids: int,
    column_ids: int,
    row_weight: int,
    positive_weight: int,
    loss: int,
    gradient: bool,
    grad_q: _Matrix,
    grad_k: _Matrix,
    precision: int,
    threads: int,
) -> tuple[float, float]: ...
def neighbours(
    q: _Matrix,
    k: _Matrix,
    count: int,
    row_ids: int,
    column_ids: int,
    similarity: int,
    index: int,
    precision: int,
    threads: int,
) -> None: ...
def hardest(q: _Matrix, ids: int, offset: int, negative: int, positive: int, precision: int, threads: int) -> None: ...
def triplets(
    q: _Matrix,
    ids: int,
    margin: float,
    euclidean: bool,
    semi_hard: bool,
    loss: int,
    count: int,
    grad_loss: int,
    grad_q: _Matrix,
    precision: int,
    threads: int,
) -> None: ...

_Places = tuple[_Matrix, int]  # a view at position 0, and the step to the next position

class Views:
    def __init__(self, x: _Places, y: _Places, positions: int, threads: int) -> None: ...

def auto_covariance(views: Views, square: int, off_diagonal: int, distance: int, gram: int, exact: int) -> None: ...
def auto_covariance_backward(
    views: Views, grad_square: int, grad_off_diagonal: int, grad_distance: float, gram: int, exact: int, grad: Views
) -> None: ...
def cross_correlation(views: Views, eps: float, diagonal: int, off_diagonal: int, gram: int, exact: int) -> None: ...
def cross_correlation_backward(
    views: Views, eps: float, grad_diagonal: int, grad_off_diagonal: float, gram: int, exact: int, grad: Views
) -> None: ...
def decorrelation(views: Views, square: int, off_correlation: int, gram: int) -> None: ...
def characteristic(views: Views, step: float, count: int, cosine: int, sine: int) -> None: ...
def characteristic_backward(
    views: Views, step: float, count: int, grad_cosine: int, grad_sine: int, grad: Views
) -> None: ...
def spread(x: _Matrix, centres: int, distance: int, threads: int) -> None: ...
def spread_backward(x: _Matrix, centres: int, grad_distance: float, grad: _Matrix, threads: int) -> None: ...
def prefetch(objects: list[Any]) -> None: ...
def members(dicts: list[dict[Any, Any]]) -> bytes: ...

class Torch:
    def __init__(self, functions: Sequence[int], probe: Any, cdata: int, types: tuple[type, ...]) -> None: ...
    def look(self, tensors: list[Any]) -> tuple[bytes, list[int]] | None: ...

SAMPLE_NUMBERS: int
RECIPE_NUMBERS: int

def draw(
    recipe: int,
    samples: int,
    sizes: int,
    index: int,
    seed: int,
    epoch: int,
    view: int,
    columns: Sequence[int],
) -> None: ...
def pack(
    columns: Sequence[int],
    samples: int,
    sizes: int,
    height: int,
    width: int,
    blur_kernel: int,
    grey_first: bool,
    table: int,
) -> bool: ...
def augment(
    images: int,
    channels: int,
    height: int,
    width: int,
    pictures: int,
    samples: int,
    input: int,
    bicubic: bool,
    antialias: bool,
    mean: int,
    std: int,
    erase_value: float,
    output: int,
    out: int,
    steps: Sequence[int],
    threads: int,
) -> None: ...

class Layout:
    def __init__(self, counts: Sequence[int], dtypes: Sequence[Sequence[int]]) -> None: ...

_Addresses = Sequence[Sequence[int]]  # by list, as the layout has them

def ema(layout: Layout, addresses: _Addresses, averaged: int, momentum: float, threads: int) -> None: ...
def square_sum(layout: Layout, addresses: _Addresses, threads: int) -> float: ...
def adamw(
    layout: Layout,
    addresses: _Addresses,
    steps: Sequence[int],
    ema_momentum: float,
    lr: float,
    factor: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    threads: int,
) -> None: ...
def lars(
    layout: Layout,
    addresses: _Addresses,
    adapted: Sequence[bool],
    fresh: Sequence[bool],
    ema_momentum: float,
    lr: float,
    factor: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    trust_coefficient: float,
    eps: float,
    nesterov: bool,
    trust_clip: bool,
    joint: bool,
    threads: int,
) -> None: ...
