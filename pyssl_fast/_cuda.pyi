from collections.abc import Sequence

FLOAT32: int
FLOAT16: int
BFLOAT16: int
CHUNK: int  # elements that one block does
RECORD_BYTES: int  # of workspace, for an entry
PARTIAL_DOUBLES: int  # of workspace, for a chunk of `lars`; `square_sum` takes one
COMPILER: str
TARGETS: list[str]

class Layout:
    def __init__(self, counts: Sequence[int], dtypes: Sequence[Sequence[int]]) -> None: ...

_Addresses = Sequence[Sequence[int]]  # by list, as the layout has them
Scalar = tuple[float, int, bool]  # value, pointer on the device (0: the value holds), whether that is to a double
Stream = tuple[int, int]  # device, CUDA's handle

def ema(layout: Layout, addresses: _Addresses, averaged: int, momentum: Scalar, stream: Stream) -> None: ...
def square_sum(layout: Layout, addresses: _Addresses, partials: int, result: int, stream: Stream) -> None: ...
def adamw(
    layout: Layout,
    addresses: _Addresses,
    steps: Sequence[int],
    ema_momentum: Scalar,
    lr: Scalar,
    factor: Scalar,
    found_inf: Scalar,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    records: int,
    stream: Stream,
) -> None: ...
def lars(
    layout: Layout,
    addresses: _Addresses,
    adapted: Sequence[bool],
    fresh: Sequence[bool],
    ema_momentum: Scalar,
    lr: Scalar,
    factor: Scalar,
    found_inf: Scalar,
    momentum: float,
    dampening: float,
    weight_decay: float,
    trust_coefficient: float,
    eps: float,
    nesterov: bool,
    maximize: bool,
    trust_clip: bool,
    joint: bool,
    records: int,
    partials: int,
    stream: Stream,
) -> None: ...
def partials(height: int, width: int) -> int: ...  # of one image of `augment`, float32
def augment(
    images: int,
    shape: Sequence[int],  # channels, height and width of the output
    pixel: int,
    image: Sequence[int],  # the first: address, steps of channel, row and pixel in elements, height, width
    step: int,  # from one image to the next, bytes
    each: int,  # a table of such images on the device; 0: they are alike
    samples: int,  # the table on the device
    bicubic: bool,
    antialias: bool,
    mean: Sequence[float],  # of every channel
    std: Sequence[float],
    erase_value: float,
    out: int,
    out_pixel: int,
    strides: Sequence[int],
    workspace: Sequence[int],  # of float32: resized and coloured, as out, contiguous; sums, images · partials()
    stream: Stream,
) -> None: ...
